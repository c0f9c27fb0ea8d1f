//! Names of images, spelled out as Docker does: `redis:6` is `docker.io/library/redis:6`.

use std::fmt;
use std::str::FromStr;

use oci_client::Reference;

use crate::digest::Digest;

/// A parsed image name with its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no image. The pod's reason is `InvalidImageName`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: {message}")]
pub struct InvalidReference {
    name: String,
    message: String,
}

impl ImageReference {
    /// Host and port of the registry, `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository, `library/redis` for `redis`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag` if there is a tag and no digest: a name that may move.
    pub(crate) fn tagged_name(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }
}

impl FromStr for ImageReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<ImageReference, InvalidReference> {
        let invalid = |message: String| InvalidReference {
            name: text.to_owned(),
            message,
        };
        let parsed: Reference = text
            .parse()
            .map_err(|e: oci_client::ParseError| invalid(e.to_string()))?;
        let digest = parsed
            .digest()
            .map(|digest| digest.parse::<Digest>().map_err(|e| invalid(e.to_string())))
            .transpose()?;
        Ok(ImageReference {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_out_as_docker_does() {
        let digest = Digest::of(b"x");
        let with_digest = format!("redis@{digest}");
        let with_both = format!("redis:6@{digest}");
        for (given, want) in [
            ("redis", "docker.io/library/redis:latest".to_owned()),
            ("redis:6", "docker.io/library/redis:6".to_owned()),
            ("bitnami/redis", "docker.io/bitnami/redis:latest".to_owned()),
            ("docker.io/redis:6", "docker.io/library/redis:6".to_owned()),
            (
                "index.docker.io/redis:6",
                "docker.io/library/redis:6".to_owned(),
            ),
            ("localhost/redis", "localhost/redis:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            (
                "mcr.microsoft.com/oss/bitnami/redis:6.0.8",
                "mcr.microsoft.com/oss/bitnami/redis:6.0.8".to_owned(),
            ),
            (&with_digest, format!("docker.io/library/redis@{digest}")),
            (&with_both, format!("docker.io/library/redis:6@{digest}")),
        ] {
            assert_eq!(
                given.parse::<ImageReference>().unwrap().to_string(),
                want,
                "{given}"
            );
        }
    }

    #[test]
    fn malformed_names_are_refused_with_the_name_in_the_message() {
        for bad in [
            "",
            "Redis",
            "redis:",
            "redis:a b",
            "/redis",
            "a//b",
            "redis@sha256:12",
            "-x/y:z ",
        ] {
            let error = bad.parse::<ImageReference>().unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
