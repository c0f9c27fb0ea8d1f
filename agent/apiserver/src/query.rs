//! Query parameters of a request.

use axum::extract::Query as AxumQuery;
use http::Uri;
use skiff_api::decode::Strictness;
use skiff_api::resource::GroupKind;
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;
use skiff_storage::Revision;

use crate::failure::Failure;

/// All parameters, in order; names may repeat.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads them from the request's URI; what cannot be decoded counts as absent.
    pub(crate) fn of(uri: &Uri) -> Self {
        let pairs = AxumQuery::<Vec<(String, String)>>::try_from_uri(uri);
        Self {
            pairs: pairs.map(|query| query.0).unwrap_or_default(),
        }
    }

    /// The first value of a parameter, empty if it is not there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.pairs
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, value)| value)
    }

    /// Every value of a parameter.
    pub(crate) fn all<'q>(&'q self, name: &str) -> impl Iterator<Item = &'q str> {
        self.pairs
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean as upstream reads it: present and neither `false` nor `0`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.pairs
            .iter()
            .find(|(n, _)| n == name)
            .is_some_and(|(_, value)| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// An optional number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let text = self.get(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_syntax| {
            ApiStatus::bad_request(format!("invalid value {text:?} for query parameter {name}"))
                .into()
        })
    }

    /// `fieldValidation`.
    pub(crate) fn strictness(&self) -> Result<Strictness, Failure> {
        let text = self.get("fieldValidation");
        Strictness::parse(text).ok_or_else(|| {
            let error = FieldError::not_supported(
                "fieldValidation",
                text,
                &["", "Ignore", "Strict", "Warn"],
            );
            invalid_options("CreateOptions", error)
        })
    }

    /// `dryRun`: whether nothing shall be stored.
    pub(crate) fn dry_run(&self) -> Result<bool, Failure> {
        let mut dry = false;
        for value in self.all("dryRun") {
            if value != "All" {
                let error = FieldError::not_supported("dryRun", value, &["All"]);
                return Err(invalid_options("CreateOptions", error));
            }
            dry = true;
        }
        Ok(dry)
    }

    /// `resourceVersion`; `None` when not given.
    pub(crate) fn resource_version(&self) -> Result<Option<Revision>, Failure> {
        parse_version(self.get("resourceVersion"))
    }
}

/// Reads a resource version; `None` for the empty string.
pub(crate) fn parse_version(text: &str) -> Result<Option<Revision>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(|number| Some(Revision(number)))
        .map_err(|_syntax| {
            let error =
                FieldError::invalid("resourceVersion", text, "strconv.ParseUint: invalid syntax");
            ApiStatus::bad_request(format!("resourceVersion: {}", error.body())).into()
        })
}

/// 422 for the parameters of a request.
pub(crate) fn invalid_options(kind: &str, error: FieldError) -> Failure {
    ApiStatus::invalid(
        GroupKind {
            group: "meta.k8s.io",
            kind,
        },
        "",
        &[error],
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/x?{text}").parse().unwrap())
    }

    #[test]
    fn flags_and_lists() {
        let query = query("watch=1&follow=false&command=a&command=b+c&empty=");
        assert!(query.flag("watch") && query.flag("empty"));
        assert!(!query.flag("follow") && !query.flag("absent"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a", "b c"]);
    }

    #[test]
    fn wrong_values_name_their_parameter() {
        assert!(
            query("resourceVersion=abc")
                .resource_version()
                .unwrap_err()
                .message
                .contains("resourceVersion")
        );
        assert!(
            query("dryRun=Some")
                .dry_run()
                .unwrap_err()
                .message
                .contains("dryRun")
        );
        assert!(
            query("limit=x")
                .number::<u32>("limit")
                .unwrap_err()
                .message
                .contains("limit")
        );
        assert!(
            query("fieldValidation=No")
                .strictness()
                .unwrap_err()
                .message
                .contains("fieldValidation")
        );
    }
}
