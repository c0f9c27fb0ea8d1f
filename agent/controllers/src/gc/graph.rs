//! Who owns whom, as far as the watches have told. Pure.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// Where an object is found in the API.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Identity {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) identity: Identity,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) deleting: bool,
    pub(crate) foreground: bool,
    pub(crate) orphan: bool,
}

impl Object {
    pub(crate) fn new(api_version: &str, kind: &str, meta: &ObjectMeta) -> Object {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
        Object {
            identity: Identity {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    /// It is being deleted and waits for its dependents.
    pub(crate) fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// The objects by UID, and the UIDs of the dependents of each owner, known or not.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    objects: HashMap<String, Object>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    pub(crate) fn dependents(&self, uid: &str) -> impl Iterator<Item = (&str, &Object)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.as_str(), self.objects.get(uid)?)))
    }

    /// Takes in an object; returns the UIDs to look at.
    pub(crate) fn apply(&mut self, uid: &str, object: Object) -> Vec<String> {
        let old = self.objects.get(uid);
        let mut touched = Vec::new();
        let owners_changed = old.is_none_or(|old| old.owners != object.owners);
        if owners_changed {
            let before: Vec<String> = old
                .into_iter()
                .flat_map(|o| &o.owners)
                .map(|o| o.uid.clone())
                .collect();
            for owner in before {
                self.unlink(&owner, uid);
                // An owner that waits for its dependents has one less.
                if self
                    .objects
                    .get(&owner)
                    .is_some_and(Object::waits_for_dependents)
                {
                    touched.push(owner);
                }
            }
            for owner in &object.owners {
                self.dependents
                    .entry(owner.uid.clone())
                    .or_default()
                    .insert(uid.to_owned());
            }
            if !object.owners.is_empty() {
                touched.push(uid.to_owned());
            }
        }
        if object.deleting && (object.foreground || object.orphan) {
            touched.push(uid.to_owned());
        }
        self.objects.insert(uid.to_owned(), object);
        touched
    }

    /// The object is gone; returns the UIDs to look at.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(object) = self.objects.remove(uid) else {
            return Vec::new();
        };
        let mut touched: Vec<String> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        for owner in &object.owners {
            self.unlink(&owner.uid, uid);
            if self
                .objects
                .get(&owner.uid)
                .is_some_and(Object::waits_for_dependents)
            {
                touched.push(owner.uid.clone());
            }
        }
        touched
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

/// What is known of each owner of an object.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// There, and staying.
    pub(crate) solid: Vec<String>,
    /// Gone.
    pub(crate) dangling: Vec<String>,
    /// Being deleted in the foreground, waiting for this object.
    pub(crate) waiting: Vec<String>,
}

/// What to do about an object that has owners.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Keep,
    /// It stays, but these owners are taken off it.
    DropOwners(Vec<String>),
    /// Nobody wants it any more.
    Delete(&'static str),
}

/// Decides as upstream's `attemptToDeleteItem`.
pub(crate) fn judge(object: &Object, owners: &Owners, has_dependents: bool) -> Verdict {
    if object.owners.is_empty() || object.deleting {
        return Verdict::Keep;
    }
    if !owners.solid.is_empty() {
        let drop: Vec<_> = owners
            .dangling
            .iter()
            .chain(&owners.waiting)
            .cloned()
            .collect();
        return if drop.is_empty() {
            Verdict::Keep
        } else {
            Verdict::DropOwners(drop)
        };
    }
    if !owners.waiting.is_empty() && has_dependents {
        return Verdict::Delete("Foreground");
    }
    // What the object's own finalizers ask for is kept.
    Verdict::Delete(match (object.orphan, object.foreground) {
        (true, _) => "Orphan",
        (false, true) => "Foreground",
        (false, false) => "Background",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(owners: &[&str]) -> Object {
        let owners = owners.iter().map(|uid| OwnerReference {
            uid: (*uid).to_owned(),
            ..OwnerReference::default()
        });
        let meta = ObjectMeta {
            owner_references: Some(owners.collect()),
            ..ObjectMeta::default()
        };
        Object::new("v1", "Pod", &meta)
    }

    #[test]
    fn dependents_are_looked_at_when_the_owner_goes() {
        let mut graph = Graph::default();
        assert_eq!(graph.apply("child", object(&["owner"])), ["child"]);
        assert!(graph.apply("owner", object(&[])).is_empty());
        assert_eq!(graph.remove("owner"), ["child"]);
        assert_eq!(graph.dependents("owner").count(), 1);
        graph.remove("child");
        assert_eq!(graph.dependents("owner").count(), 0);
    }

    #[test]
    fn a_waiting_owner_is_looked_at_when_a_dependent_goes() {
        let mut graph = Graph::default();
        let waiting = Object {
            deleting: true,
            foreground: true,
            ..object(&[])
        };
        assert_eq!(graph.apply("owner", waiting), ["owner"]);
        graph.apply("a", object(&["owner"]));
        graph.apply("b", object(&["owner"]));
        assert_eq!(graph.remove("a"), ["owner"]);
        assert_eq!(graph.apply("b", object(&[])), ["owner"]);
    }

    #[test]
    fn verdicts() {
        let owned = object(&["o"]);
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let owners = |solid: &[&str], dangling: &[&str], waiting: &[&str]| Owners {
            solid: names(solid),
            dangling: names(dangling),
            waiting: names(waiting),
        };
        let orphaning = Object {
            orphan: true,
            ..owned.clone()
        };
        let deleting = Object {
            deleting: true,
            ..owned.clone()
        };
        let table = [
            (&owned, owners(&["o"], &[], &[]), false, Verdict::Keep),
            (
                &owned,
                owners(&["o"], &["d"], &["w"]),
                true,
                Verdict::DropOwners(names(&["d", "w"])),
            ),
            (
                &owned,
                owners(&[], &["d"], &[]),
                true,
                Verdict::Delete("Background"),
            ),
            (
                &owned,
                owners(&[], &[], &["w"]),
                true,
                Verdict::Delete("Foreground"),
            ),
            (
                &owned,
                owners(&[], &[], &["w"]),
                false,
                Verdict::Delete("Background"),
            ),
            (
                &orphaning,
                owners(&[], &["d"], &[]),
                false,
                Verdict::Delete("Orphan"),
            ),
            (&deleting, owners(&[], &["d"], &[]), false, Verdict::Keep),
        ];
        for (object, owners, dependents, expected) in table {
            assert_eq!(judge(object, &owners, dependents), expected, "{owners:?}");
        }
        assert_eq!(
            judge(&object(&[]), &owners(&[], &[], &[]), true),
            Verdict::Keep
        );
    }
}
