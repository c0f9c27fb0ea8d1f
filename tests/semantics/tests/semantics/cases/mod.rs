//! The cases, by topic. Each is what upstream documents, and what its proxy does.

mod affinity;
mod changes;
mod conditions;
mod frontends;
mod kinds;
mod policy;
mod restart;
mod slices;
mod topology;
mod udp;

use crate::run::Case;

/// All of them.
pub(crate) const ALL: &[&[Case]] = &[
    frontends::CASES,
    policy::CASES,
    conditions::CASES,
    slices::CASES,
    kinds::CASES,
    affinity::CASES,
    topology::CASES,
    changes::CASES,
    udp::CASES,
    restart::CASES,
];
