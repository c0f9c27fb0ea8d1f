//! Rules for volumes.

use serde_json::Value;

use super::super::{Errors, FieldError, complain, names, one_of};
use super::container::{local_path, no_backsteps};
use super::env;
use crate::object::{at, entries, int_at, items, text};
use crate::quantity::Quantity;

const HOST_PATH_TYPES: &[&str] = &[
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];
const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.annotations",
];

pub(super) fn validate(field: &str, spec: &Value, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, volume) in items(spec, &["volumes"]).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = text(volume, &["name"]);
        let name_field = format!("{field}.name");
        if name.is_empty() {
            errors.push(FieldError::required(&name_field, ""));
        } else {
            complain(&name_field, name, names::dns1123_label(name), errors);
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(&name_field, name));
            }
            seen.push(name);
        }
        let mut sources = entries(volume, &[]).filter(|(key, v)| *key != "name" && !v.is_null());
        match sources.next() {
            None => errors.push(FieldError::required(&field, "must specify a volume type")),
            Some((kind, source)) => {
                validate_source(&format!("{field}.{kind}"), kind, source, errors)
            }
        }
        for (kind, _) in sources {
            let detail = "may not specify more than 1 volume type";
            errors.push(FieldError::forbidden(
                format_args!("{field}.{kind}"),
                detail,
            ));
        }
    }
}

fn validate_source(field: &str, kind: &str, source: &Value, errors: &mut Errors) {
    let mut require = |key: &str| {
        if text(source, &[key]).is_empty() {
            errors.push(FieldError::required(format_args!("{field}.{key}"), ""));
        }
    };
    match kind {
        "hostPath" => {
            require("path");
            no_backsteps(&format!("{field}.path"), text(source, &["path"]), errors);
            let path_type = text(source, &["type"]);
            one_of(&format!("{field}.type"), path_type, HOST_PATH_TYPES, errors);
        }
        "emptyDir" => {
            let limit = text(source, &["sizeLimit"]);
            if Quantity::parse(limit).is_ok_and(Quantity::is_negative) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(
                    format_args!("{field}.sizeLimit"),
                    detail,
                ));
            }
        }
        "secret" => {
            require("secretName");
            files(field, source, errors);
        }
        "configMap" => {
            require("name");
            files(field, source, errors);
        }
        "downwardAPI" => downward(field, source, errors),
        "persistentVolumeClaim" => require("claimName"),
        "nfs" => {
            require("server");
            require("path");
        }
        "projected" => projected(field, source, errors),
        _ => {}
    }
}

fn mode(field: &str, mode: Option<i64>, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(field, mode, detail));
    }
}

/// Keys of a ConfigMap or Secret made into files.
fn files(field: &str, source: &Value, errors: &mut Errors) {
    mode(
        &format!("{field}.defaultMode"),
        int_at(source, &["defaultMode"]),
        errors,
    );
    for (index, item) in items(source, &["items"]).iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        if text(item, &["key"]).is_empty() {
            errors.push(FieldError::required(format_args!("{field}.key"), ""));
        }
        file_path(&field, item, errors);
    }
}

fn file_path(field: &str, item: &Value, errors: &mut Errors) {
    let path = text(item, &["path"]);
    let path_field = format!("{field}.path");
    if path.is_empty() {
        errors.push(FieldError::required(&path_field, ""));
    } else {
        local_path(&path_field, path, errors);
        if path.starts_with("..") && !path.starts_with("../") && path != ".." {
            errors.push(FieldError::invalid(
                &path_field,
                path,
                "must not start with '..'",
            ));
        }
    }
    mode(&format!("{field}.mode"), int_at(item, &["mode"]), errors);
}

fn downward(field: &str, source: &Value, errors: &mut Errors) {
    mode(
        &format!("{field}.defaultMode"),
        int_at(source, &["defaultMode"]),
        errors,
    );
    for (index, item) in items(source, &["items"]).iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        file_path(&field, item, errors);
        match (at(item, &["fieldRef"]), at(item, &["resourceFieldRef"])) {
            (Some(reference), None) => {
                env::field_reference(
                    &format!("{field}.fieldRef"),
                    reference,
                    DOWNWARD_FIELDS,
                    errors,
                );
            }
            (None, Some(reference)) => {
                let field = format!("{field}.resourceFieldRef");
                if text(reference, &["containerName"]).is_empty() {
                    errors.push(FieldError::required(
                        format_args!("{field}.containerName"),
                        "",
                    ));
                }
                env::resource_reference(&field, reference, errors);
            }
            (Some(_), Some(_)) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&field, "resource", detail));
            }
            (None, None) => {
                let detail = "one of fieldRef and resourceFieldRef is required";
                errors.push(FieldError::required(&field, detail));
            }
        }
    }
}

fn projected(field: &str, volume: &Value, errors: &mut Errors) {
    mode(
        &format!("{field}.defaultMode"),
        int_at(volume, &["defaultMode"]),
        errors,
    );
    for (index, source) in items(volume, &["sources"]).iter().enumerate() {
        let field = format!("{field}.sources[{index}]");
        for kind in ["secret", "configMap"] {
            let Some(inner) = at(source, &[kind]) else {
                continue;
            };
            let field = format!("{field}.{kind}");
            if text(inner, &["name"]).is_empty() {
                errors.push(FieldError::required(format_args!("{field}.name"), ""));
            }
            files(&field, inner, errors);
        }
        if let Some(inner) = at(source, &["downwardAPI"]) {
            downward(&format!("{field}.downwardAPI"), inner, errors);
        }
        if let Some(token) = at(source, &["serviceAccountToken"]) {
            let field = format!("{field}.serviceAccountToken");
            let seconds = int_at(token, &["expirationSeconds"]).unwrap_or(3600);
            if seconds < 600 {
                let detail = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(
                    format_args!("{field}.expirationSeconds"),
                    seconds,
                    detail,
                ));
            }
            if text(token, &["path"]).is_empty() {
                errors.push(FieldError::required(format_args!("{field}.path"), ""));
            }
        }
    }
}
