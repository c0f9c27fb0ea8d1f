//! How lists merge, by type: upstream's `patchStrategy` and `patchMergeKey` tags.
//!
//! What is not named here merges as a map, or is replaced as a list. The same table writes the
//! `x-kubernetes-patch-*` extensions of the OpenAPI documents, by which kubectl makes its patches: both sides
//! have to agree.

use Field::{Merge, MergeRetainKeys, Object, RetainKeys, Set};

use crate::resource::Kind;

/// A type's fields that need to be known.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) fields: &'static [(&'static str, Field)],
}

/// How one field merges.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field {
    /// A map with known fields.
    Object(&'static Schema),
    /// A map that may carry `$retainKeys`.
    RetainKeys(&'static Schema),
    /// A list of maps that merges by a key.
    Merge {
        key: &'static str,
        element: &'static Schema,
    },
    /// As `Merge`, and the elements may carry `$retainKeys`.
    MergeRetainKeys {
        key: &'static str,
        element: &'static Schema,
    },
    /// A list of plain values that merges as a set.
    Set,
}

impl Schema {
    pub(crate) fn field(&self, name: &str) -> Option<Field> {
        self.fields
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, how)| *how)
    }
}

pub(crate) static PLAIN: Schema = Schema { fields: &[] };

static METADATA: Schema = Schema {
    fields: &[
        (
            "ownerReferences",
            Merge {
                key: "uid",
                element: &PLAIN,
            },
        ),
        ("finalizers", Set),
    ],
};

static CONTAINER: Schema = Schema {
    fields: &[
        (
            "ports",
            Merge {
                key: "containerPort",
                element: &PLAIN,
            },
        ),
        (
            "env",
            Merge {
                key: "name",
                element: &PLAIN,
            },
        ),
        (
            "volumeMounts",
            Merge {
                key: "mountPath",
                element: &PLAIN,
            },
        ),
        (
            "volumeDevices",
            Merge {
                key: "devicePath",
                element: &PLAIN,
            },
        ),
    ],
};

static POD_SPEC: Schema = Schema {
    fields: &[
        (
            "volumes",
            MergeRetainKeys {
                key: "name",
                element: &PLAIN,
            },
        ),
        (
            "initContainers",
            Merge {
                key: "name",
                element: &CONTAINER,
            },
        ),
        (
            "containers",
            Merge {
                key: "name",
                element: &CONTAINER,
            },
        ),
        (
            "ephemeralContainers",
            Merge {
                key: "name",
                element: &CONTAINER,
            },
        ),
        (
            "imagePullSecrets",
            Merge {
                key: "name",
                element: &PLAIN,
            },
        ),
        (
            "hostAliases",
            Merge {
                key: "ip",
                element: &PLAIN,
            },
        ),
        (
            "topologySpreadConstraints",
            Merge {
                key: "topologyKey",
                element: &PLAIN,
            },
        ),
        (
            "schedulingGates",
            Merge {
                key: "name",
                element: &PLAIN,
            },
        ),
        (
            "resourceClaims",
            MergeRetainKeys {
                key: "name",
                element: &PLAIN,
            },
        ),
    ],
};

static POD_STATUS: Schema = Schema {
    fields: &[
        (
            "conditions",
            Merge {
                key: "type",
                element: &PLAIN,
            },
        ),
        (
            "podIPs",
            Merge {
                key: "ip",
                element: &PLAIN,
            },
        ),
        (
            "hostIPs",
            Merge {
                key: "ip",
                element: &PLAIN,
            },
        ),
        (
            "resourceClaimStatuses",
            MergeRetainKeys {
                key: "name",
                element: &PLAIN,
            },
        ),
    ],
};

static POD: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        ("spec", Object(&POD_SPEC)),
        ("status", Object(&POD_STATUS)),
    ],
};

static TEMPLATE: Schema = Schema {
    fields: &[("metadata", Object(&METADATA)), ("spec", Object(&POD_SPEC))],
};

static CONDITIONS: Schema = Schema {
    fields: &[(
        "conditions",
        Merge {
            key: "type",
            element: &PLAIN,
        },
    )],
};

static DEPLOYMENT_SPEC: Schema = Schema {
    fields: &[
        ("template", Object(&TEMPLATE)),
        ("strategy", RetainKeys(&PLAIN)),
    ],
};

static DEPLOYMENT: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        ("spec", Object(&DEPLOYMENT_SPEC)),
        ("status", Object(&CONDITIONS)),
    ],
};

static REPLICA_SET: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        (
            "spec",
            Object(&Schema {
                fields: &[("template", Object(&TEMPLATE))],
            }),
        ),
        ("status", Object(&CONDITIONS)),
    ],
};

static SERVICE_SPEC: Schema = Schema {
    fields: &[(
        "ports",
        Merge {
            key: "port",
            element: &PLAIN,
        },
    )],
};

static SERVICE: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        ("spec", Object(&SERVICE_SPEC)),
        ("status", Object(&CONDITIONS)),
    ],
};

static NODE_SPEC: Schema = Schema {
    fields: &[("podCIDRs", Set)],
};

static NODE_STATUS: Schema = Schema {
    fields: &[
        (
            "conditions",
            Merge {
                key: "type",
                element: &PLAIN,
            },
        ),
        (
            "addresses",
            Merge {
                key: "type",
                element: &PLAIN,
            },
        ),
    ],
};

static NODE: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        ("spec", Object(&NODE_SPEC)),
        ("status", Object(&NODE_STATUS)),
    ],
};

static NAMESPACE: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        ("status", Object(&CONDITIONS)),
    ],
};

static SERVICE_ACCOUNT: Schema = Schema {
    fields: &[
        ("metadata", Object(&METADATA)),
        (
            "secrets",
            Merge {
                key: "name",
                element: &PLAIN,
            },
        ),
    ],
};

static ONLY_METADATA: Schema = Schema {
    fields: &[("metadata", Object(&METADATA))],
};

/// The schema of a kind.
pub(crate) fn of(kind: Kind) -> &'static Schema {
    match kind {
        Kind::Pod => &POD,
        Kind::Deployment => &DEPLOYMENT,
        Kind::ReplicaSet => &REPLICA_SET,
        Kind::Service => &SERVICE,
        Kind::Node => &NODE,
        Kind::Namespace => &NAMESPACE,
        Kind::ServiceAccount => &SERVICE_ACCOUNT,
        Kind::Endpoints
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::CoreEvent
        | Kind::Event
        | Kind::EndpointSlice
        | Kind::Lease
        | Kind::NetworkPolicy => &ONLY_METADATA,
    }
}

/// Types by their OpenAPI name, for the extensions there.
pub(crate) static BY_OPENAPI_NAME: &[(&str, &Schema)] = &[
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", &METADATA),
    ("io.k8s.api.core.v1.Container", &CONTAINER),
    ("io.k8s.api.core.v1.EphemeralContainer", &CONTAINER),
    ("io.k8s.api.core.v1.PodSpec", &POD_SPEC),
    ("io.k8s.api.core.v1.PodStatus", &POD_STATUS),
    ("io.k8s.api.core.v1.ServiceSpec", &SERVICE_SPEC),
    ("io.k8s.api.core.v1.ServiceStatus", &CONDITIONS),
    ("io.k8s.api.core.v1.NamespaceStatus", &CONDITIONS),
    ("io.k8s.api.core.v1.NodeSpec", &NODE_SPEC),
    ("io.k8s.api.core.v1.NodeStatus", &NODE_STATUS),
    ("io.k8s.api.core.v1.ServiceAccount", &SERVICE_ACCOUNT),
    ("io.k8s.api.apps.v1.DeploymentSpec", &DEPLOYMENT_SPEC),
    ("io.k8s.api.apps.v1.DeploymentStatus", &CONDITIONS),
    ("io.k8s.api.apps.v1.ReplicaSetStatus", &CONDITIONS),
];
