//! What is in a `configMap`, `secret`, `downwardAPI` or `projected` volume. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection,
};

use super::atomic_writer::{File, Payload};
use super::{Objects, VolumeError};
use crate::env::{field_value, resource_value};

/// The files of this volume; `None` if it is no volume of files.
pub(crate) fn payload(
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
) -> Result<Option<Payload>, VolumeError> {
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let mode = mode(source.default_mode);
        let items = source.items.as_deref();
        add_config_map(
            &mut files,
            &source.name,
            items,
            source.optional,
            mode,
            objects,
        )?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let items = source.items.as_deref();
        add_secret(
            &mut files,
            name,
            items,
            source.optional,
            mode(source.default_mode),
            objects,
        )?;
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        add_downward(&mut files, pod, items, mode(source.default_mode), objects)?;
    } else if let Some(source) = &volume.projected {
        for projection in source.sources.iter().flatten() {
            add_projection(
                &mut files,
                pod,
                projection,
                mode(source.default_mode),
                objects,
            )?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(0o644)
}

fn add_projection(
    files: &mut Payload,
    pod: &Pod,
    source: &VolumeProjection,
    mode: u32,
    objects: &Objects,
) -> Result<(), VolumeError> {
    if let Some(map) = &source.config_map {
        add_config_map(
            files,
            &map.name,
            map.items.as_deref(),
            map.optional,
            mode,
            objects,
        )?;
    }
    if let Some(secret) = &source.secret {
        let items = secret.items.as_deref();
        add_secret(files, &secret.name, items, secret.optional, mode, objects)?;
    }
    if let Some(downward) = &source.downward_api {
        add_downward(
            files,
            pod,
            downward.items.as_deref().unwrap_or_default(),
            mode,
            objects,
        )?;
    }
    if source.service_account_token.is_some() {
        // Left out: the API server issues no tokens for service accounts yet.
        tracing::debug!("projected service account token left out");
    }
    Ok(())
}

fn add_config_map(
    files: &mut Payload,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    objects: &Objects,
) -> Result<(), VolumeError> {
    let optional = optional == Some(true);
    let Some(map) = objects.config_maps.get(name) else {
        return if optional {
            Ok(())
        } else {
            Err(not_found("configmap", name))
        };
    };
    add_keys(
        files,
        "configmap",
        name,
        contents(map),
        items,
        optional,
        mode,
    )
}

fn contents(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

fn add_secret(
    files: &mut Payload,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    objects: &Objects,
) -> Result<(), VolumeError> {
    let optional = optional == Some(true);
    let Some(secret) = objects.secrets.get(name) else {
        return if optional {
            Ok(())
        } else {
            Err(not_found("secret", name))
        };
    };
    let data = secret_contents(secret);
    add_keys(files, "secret", name, data, items, optional, mode)
}

fn secret_contents(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()))
        .collect()
}

fn not_found(kind: &'static str, name: &str) -> VolumeError {
    VolumeError::NotFound {
        kind,
        name: name.to_owned(),
    }
}

fn add_keys(
    files: &mut Payload,
    kind: &'static str,
    name: &str,
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(
            data.into_iter()
                .map(|(key, data)| (key, File { data, mode })),
        );
        return Ok(());
    };
    for item in items {
        let Some(data) = data.get_mut(&item.key) else {
            if optional {
                continue;
            }
            return Err(VolumeError::NoKey {
                kind,
                name: name.to_owned(),
                key: item.key.clone(),
            });
        };
        let mode = item
            .mode
            .and_then(|mode| u32::try_from(mode).ok())
            .unwrap_or(mode);
        files.insert(
            item.path.clone(),
            File {
                data: data.clone(),
                mode,
            },
        );
    }
    Ok(())
}

fn add_downward(
    files: &mut Payload,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: u32,
    objects: &Objects,
) -> Result<(), VolumeError> {
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, &field.field_path, &[], &[]),
            (None, Some(resource)) => resource_value(pod, None, resource, objects.allocatable),
            (None, None) => Ok(String::new()),
        };
        let value = value.map_err(|source| VolumeError::Downward { source })?;
        let mode = item
            .mode
            .and_then(|mode| u32::try_from(mode).ok())
            .unwrap_or(mode);
        files.insert(
            item.path.clone(),
            File {
                data: value.into_bytes(),
                mode,
            },
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objects() -> Objects {
        let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}});
        let secret = json!({"data": {"pass": "c2VjcmV0"}});
        Objects {
            config_maps: [("cfg".to_owned(), serde_json::from_value(map).unwrap())].into(),
            secrets: [("sec".to_owned(), serde_json::from_value(secret).unwrap())].into(),
            ..Objects::default()
        }
    }

    fn files(volume: serde_json::Value) -> Result<Vec<(String, String, u32)>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
        }))
        .unwrap();
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let payload = payload(&pod, &volume, &objects()).map_err(|error| error.to_string())?;
        let file = |(name, file): (String, File)| {
            (
                name,
                String::from_utf8_lossy(&file.data).into_owned(),
                file.mode,
            )
        };
        Ok(payload.unwrap_or_default().into_iter().map(file).collect())
    }

    fn row(name: &str, data: &str, mode: u32) -> (String, String, u32) {
        (name.to_owned(), data.to_owned(), mode)
    }

    #[test]
    fn config_maps_come_whole_or_by_item() {
        assert_eq!(
            files(json!({"configMap": {"name": "cfg"}})).unwrap(),
            [
                row("a", "1", 0o644),
                row("b", "2", 0o644),
                row("c", "\0\u{1}", 0o644)
            ]
        );
        let items = json!([{"key": "a", "path": "x/y", "mode": 256}]);
        let some = files(json!({"configMap": {"name": "cfg", "defaultMode": 384, "items": items}}));
        assert_eq!(some.unwrap(), [row("x/y", "1", 0o400)]);
    }

    #[test]
    fn what_is_missing_is_an_error_unless_optional() {
        let missing = json!({"configMap": {"name": "gone"}});
        assert_eq!(files(missing).unwrap_err(), "configmap \"gone\" not found");
        assert_eq!(
            files(json!({"configMap": {"name": "gone", "optional": true}})).unwrap(),
            []
        );
        let items = json!([{"key": "z", "path": "z"}]);
        let no_key = json!({"secret": {"secretName": "sec", "items": items}});
        assert_eq!(
            files(no_key).unwrap_err(),
            "references non-existent secret key: z"
        );
    }

    #[test]
    fn projected_volumes_hold_all_their_sources() {
        let sources = json!([
            {"secret": {"name": "sec"}},
            {"configMap": {"name": "cfg", "items": [{"key": "b", "path": "b"}]}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}},
            ]}},
            {"serviceAccountToken": {"path": "token"}},
        ]);
        assert_eq!(
            files(json!({"projected": {"sources": sources, "defaultMode": 288}})).unwrap(),
            [
                row("b", "2", 0o440),
                row("cpu", "2", 0o440),
                row("labels", "app=\"x\"", 0o440),
                row("pass", "secret", 0o440)
            ]
        );
    }

    #[test]
    fn other_volumes_have_no_files() {
        assert_eq!(files(json!({"emptyDir": {}})).unwrap(), []);
    }
}
