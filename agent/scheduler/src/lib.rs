//! The scheduler: gives each pod without a node one that fits.
//!
//! One task owns everything: it takes changes of pods and nodes from informers into the [`cache`],
//! pops the most urgent pod from the [`queue`], runs [`filter`] over nodes until enough fit, lets
//! [`score`] choose, assumes the pod there and hands the binding to a task of its own, so that the
//! API is never waited for. A pod that fits nowhere waits until the cluster changes.
//!
//! ```text
//! informers --changes--> scheduler task --Binding--> bind tasks --POST pods/NAME/binding
//!                             ^------------- outcome ------'
//! ```
//!
//! Not here: preemption, volumes' node constraints, preferred pod (anti)affinity, and the scoring
//! side of topologySpreadConstraints (`ScheduleAnyway` is no constraint).
//!
//! Entry point: [`run`].

mod affinity;
mod bind;
mod cache;
mod filter;
mod node_info;
mod pod_info;
mod queue;
mod resources;
mod score;
mod task;

pub use task::run;
