//! The messages that are read, with upstream's field numbers.

/// How a field is written, and what becomes of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Text,
    Texts,
    /// A plain number: zero means not given.
    Int,
    /// A pointer to a number: zero is a value.
    OptInt,
    Bool,
    OptBool,
    Time,
    IntOrString,
    TextMap,
    BytesMap,
    Message(&'static Message),
    Messages(&'static Message),
    /// What a client has no say in.
    Skip,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u64,
    pub(super) name: &'static str,
    pub(super) shape: Shape,
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

const fn f(number: u64, name: &'static str, shape: Shape) -> Field {
    Field {
        number,
        name,
        shape,
    }
}

use Shape::{
    Bool, BytesMap, Int, IntOrString, Message as One, Messages as Many, OptBool, OptInt, Skip,
    Text, TextMap, Texts, Time,
};

macro_rules! messages {
    ($($name:ident { $($number:literal $field:literal $shape:expr,)* })*) => {
        $(static $name: Message = Message { name: stringify!($name), fields: &[$(f($number, $field, $shape)),*] };)*
    };
}

messages! {
    OBJECT_META {
        1 "name" Text, 2 "generateName" Text, 3 "namespace" Text, 4 "selfLink" Skip, 5 "uid" Text,
        6 "resourceVersion" Text, 7 "generation" Int, 8 "creationTimestamp" Time, 9 "deletionTimestamp" Time,
        10 "deletionGracePeriodSeconds" OptInt, 11 "labels" TextMap, 12 "annotations" TextMap,
        13 "ownerReferences" Many(&OWNER_REFERENCE), 14 "finalizers" Texts, 17 "managedFields" Skip,
    }
    OWNER_REFERENCE {
        1 "kind" Text, 3 "name" Text, 4 "uid" Text, 5 "apiVersion" Text, 6 "controller" OptBool,
        7 "blockOwnerDeletion" OptBool,
    }
    LABEL_SELECTOR { 1 "matchLabels" TextMap, 2 "matchExpressions" Many(&REQUIREMENT), }
    REQUIREMENT { 1 "key" Text, 2 "operator" Text, 3 "values" Texts, }
    DELETE_OPTIONS {
        1 "gracePeriodSeconds" OptInt, 2 "preconditions" One(&PRECONDITIONS), 3 "orphanDependents" OptBool,
        4 "propagationPolicy" Text, 5 "dryRun" Texts,
    }
    PRECONDITIONS { 1 "uid" Text, 2 "resourceVersion" Text, }
    NAMESPACE { 1 "metadata" One(&OBJECT_META), 2 "spec" One(&NAMESPACE_SPEC), 3 "status" Skip, }
    NAMESPACE_SPEC { 1 "finalizers" Texts, }
    CONFIG_MAP {
        1 "metadata" One(&OBJECT_META), 2 "data" TextMap, 3 "binaryData" BytesMap, 4 "immutable" OptBool,
    }
    SECRET {
        1 "metadata" One(&OBJECT_META), 2 "data" BytesMap, 3 "type" Text, 4 "stringData" TextMap,
        5 "immutable" OptBool,
    }
    SERVICE_ACCOUNT {
        1 "metadata" One(&OBJECT_META), 3 "imagePullSecrets" Many(&LOCAL_REFERENCE),
        4 "automountServiceAccountToken" OptBool,
    }
    LOCAL_REFERENCE { 1 "name" Text, }
    SERVICE { 1 "metadata" One(&OBJECT_META), 2 "spec" One(&SERVICE_SPEC), 3 "status" Skip, }
    SERVICE_SPEC {
        1 "ports" Many(&SERVICE_PORT), 2 "selector" TextMap, 3 "clusterIP" Text, 4 "type" Text,
        5 "externalIPs" Texts, 7 "sessionAffinity" Text, 8 "loadBalancerIP" Text,
        9 "loadBalancerSourceRanges" Texts, 10 "externalName" Text, 11 "externalTrafficPolicy" Text,
        12 "healthCheckNodePort" Int, 13 "publishNotReadyAddresses" Bool, 17 "ipFamilyPolicy" Text,
        18 "clusterIPs" Texts, 19 "ipFamilies" Texts, 20 "allocateLoadBalancerNodePorts" OptBool,
        21 "loadBalancerClass" Text, 22 "internalTrafficPolicy" Text, 23 "trafficDistribution" Text,
    }
    SERVICE_PORT {
        1 "name" Text, 2 "protocol" Text, 3 "port" Int, 4 "targetPort" IntOrString, 5 "nodePort" Int,
        6 "appProtocol" Text,
    }
    EVICTION { 1 "metadata" One(&OBJECT_META), 2 "deleteOptions" One(&DELETE_OPTIONS), }
    WHO_AM_I { 1 "metadata" One(&OBJECT_META), 2 "status" Skip, }
    MAY_I { 1 "metadata" One(&OBJECT_META), 2 "spec" One(&MAY_I_SPEC), 3 "status" Skip, }
    MAY_I_SPEC {
        1 "resourceAttributes" One(&RESOURCE_ATTRIBUTES),
        2 "nonResourceAttributes" One(&NON_RESOURCE_ATTRIBUTES),
    }
    RESOURCE_ATTRIBUTES {
        1 "namespace" Text, 2 "verb" Text, 3 "group" Text, 4 "version" Text, 5 "resource" Text,
        6 "subresource" Text, 7 "name" Text,
    }
    NON_RESOURCE_ATTRIBUTES { 1 "path" Text, 2 "verb" Text, }
    MY_RULES { 1 "metadata" One(&OBJECT_META), 2 "spec" One(&MY_RULES_SPEC), 3 "status" Skip, }
    MY_RULES_SPEC { 1 "namespace" Text, }
    DEPLOYMENT { 1 "metadata" One(&OBJECT_META), 2 "spec" One(&DEPLOYMENT_SPEC), 3 "status" Skip, }
    DEPLOYMENT_SPEC {
        1 "replicas" OptInt, 2 "selector" One(&LABEL_SELECTOR), 3 "template" One(&POD_TEMPLATE),
        4 "strategy" One(&STRATEGY), 5 "minReadySeconds" Int, 6 "revisionHistoryLimit" OptInt,
        7 "paused" Bool, 9 "progressDeadlineSeconds" OptInt,
    }
    STRATEGY { 1 "type" Text, 2 "rollingUpdate" One(&ROLLING_UPDATE), }
    ROLLING_UPDATE { 1 "maxUnavailable" IntOrString, 2 "maxSurge" IntOrString, }
    POD_TEMPLATE { 1 "metadata" One(&OBJECT_META), 2 "spec" One(&POD_SPEC), }
    POD_SPEC {
        2 "containers" Many(&CONTAINER), 3 "restartPolicy" Text, 4 "terminationGracePeriodSeconds" OptInt,
        5 "activeDeadlineSeconds" OptInt, 6 "dnsPolicy" Text, 7 "nodeSelector" TextMap,
        8 "serviceAccountName" Text, 9 "serviceAccount" Text, 10 "nodeName" Text, 11 "hostNetwork" Bool,
        12 "hostPID" Bool, 13 "hostIPC" Bool, 16 "hostname" Text, 17 "subdomain" Text, 19 "schedulerName" Text,
        24 "priorityClassName" Text,
    }
    CONTAINER {
        1 "name" Text, 2 "image" Text, 3 "command" Texts, 4 "args" Texts, 5 "workingDir" Text,
        6 "ports" Many(&CONTAINER_PORT), 8 "resources" One(&RESOURCES), 13 "terminationMessagePath" Text,
        14 "imagePullPolicy" Text, 16 "stdin" Bool, 17 "stdinOnce" Bool, 18 "tty" Bool,
        20 "terminationMessagePolicy" Text,
    }
    CONTAINER_PORT {
        1 "name" Text, 2 "hostPort" Int, 3 "containerPort" Int, 4 "protocol" Text, 5 "hostIP" Text,
    }
    RESOURCES {}
}

/// The message of a kind.
pub(super) fn of(api_version: &str, kind: &str) -> Option<&'static Message> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => &NAMESPACE,
        ("v1", "ConfigMap") => &CONFIG_MAP,
        ("v1", "Secret") => &SECRET,
        ("v1", "ServiceAccount") => &SERVICE_ACCOUNT,
        ("v1", "Service") => &SERVICE,
        ("policy/v1", "Eviction") => &EVICTION,
        ("apps/v1", "Deployment") => &DEPLOYMENT,
        ("authentication.k8s.io/v1", "SelfSubjectReview") => &WHO_AM_I,
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => &MAY_I,
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => &MY_RULES,
        // Clients write DeleteOptions in the group that they talk to.
        (_, "DeleteOptions") => &DELETE_OPTIONS,
        _ => return None,
    })
}
