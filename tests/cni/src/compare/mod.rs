//! Runs one case with several sets of plugins, each in fresh namespaces, and tells where their answers and what they
//! left in the kernel differ.
//!
//! A [`Case`] says what happens; [`Case::transcript`] makes it happen and tells all answers and states;
//! [`Case::verdict`] compares those of the references and ours, minding the [`Difference`]s that are meant.

mod case;
mod judge;
mod run;

pub use self::{
    case::{Case, ONE, Step, TWO},
    judge::{Common, Difference, References, Transcripts},
};
