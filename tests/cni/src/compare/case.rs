//! What happens in a comparison.

use serde_json::{Value, json};

use super::Difference;
use crate::runtime::Attachment;

/// One thing that happens in a case.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// A shell command in the node.
    Node(&'static str),
    /// A shell command in a pod.
    Pod(&'static str, &'static str),
    /// ADD of an attachment, by its place in the case.
    Add(usize),
    /// ADD that the reference refuses.
    Refuse(usize),
    /// CHECK of an attachment.
    Check(usize),
    /// CHECK that finds something missing.
    Miss(usize),
    /// DEL of an attachment.
    Del(usize),
    /// GC of the first list; these attachments are valid.
    Gc(&'static [usize]),
    /// STATUS of the first list.
    Status,
    /// Notes the state of the node and all pods under this title.
    Look(&'static str),
    /// Ours have changed nothing since the last look. What the reference leaves half done is its own affair.
    Untouched,
}

/// Network lists, attachments and what happens to them.
#[derive(Debug, Clone)]
pub struct Case {
    /// Unique in its table.
    pub name: String,
    /// The network lists. `$DIR` in them is a folder of this run's own.
    pub lists: Vec<Value>,
    /// The attachments that steps speak of.
    pub attachments: Vec<Attachment>,
    /// What happens.
    pub steps: Vec<Step>,
    /// Whether the oldest reference knows all keys too.
    pub old: bool,
    /// What it needs that not every kernel has. Where it is lacking both must refuse, and leave the same.
    pub needs: Option<&'static str>,
    /// Deviations from both references.
    pub differences: Vec<Difference>,
    /// Deviations from the newest only.
    pub differences_new: Vec<Difference>,
    /// Deviations from the oldest only.
    pub differences_old: Vec<Difference>,
}

/// The life of one container, and of a second DEL.
pub const ONE: &[Step] = &[
    Step::Add(0),
    Step::Look("added"),
    Step::Check(0),
    Step::Del(0),
    Step::Look("deleted"),
    Step::Del(0),
];

/// The life of two containers in one network.
pub const TWO: &[Step] = &[
    Step::Add(0),
    Step::Add(1),
    Step::Look("added"),
    Step::Check(0),
    Step::Check(1),
    Step::Del(0),
    Step::Look("one deleted"),
    Step::Del(1),
    Step::Look("deleted"),
];

impl Case {
    /// The life of one container in a network of these plugins.
    #[must_use]
    pub fn new(name: &str, plugins: Value) -> Self {
        Self {
            name: name.to_owned(),
            lists: vec![json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins})],
            attachments: vec![Attachment::new("a")],
            steps: ONE.to_vec(),
            old: true,
            needs: None,
            differences: Vec::new(),
            differences_new: Vec::new(),
            differences_old: Vec::new(),
        }
    }

    /// The same with other steps.
    #[must_use]
    pub fn steps(mut self, steps: &[Step]) -> Self {
        self.steps = steps.to_vec();
        self
    }

    /// The same after these steps.
    #[must_use]
    pub fn after(mut self, steps: &[Step]) -> Self {
        self.steps.splice(..0, steps.iter().copied());
        self
    }

    /// The same with a second container.
    #[must_use]
    pub fn two(mut self) -> Self {
        self.attachments.push(Attachment::new("b"));
        self.steps = TWO.to_vec();
        self
    }

    /// The same in another version of the protocol.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        for list in &mut self.lists {
            list["cniVersion"] = json!(version);
        }
        self
    }

    /// The same with capability arguments for the first container.
    #[must_use]
    pub fn given(mut self, capabilities: Value) -> Self {
        self.attachments[0].capabilities = capabilities;
        self
    }

    /// The same with `CNI_ARGS` for the first container.
    #[must_use]
    pub fn args(mut self, args: &'static str) -> Self {
        self.attachments[0].args = args;
        self
    }

    /// The same with keys that the oldest reference does not know.
    #[must_use]
    pub fn new_only(mut self) -> Self {
        self.old = false;
        self
    }

    /// The same where the kernel may lack what it needs.
    #[must_use]
    pub fn needs(mut self, what: &'static str) -> Self {
        self.needs = Some(what);
        self
    }

    /// Both references and ours refuse the ADD of the first container, and ours leave nothing.
    #[must_use]
    pub fn refused(self) -> Self {
        self.steps(&[Step::Look("before"), Step::Refuse(0), Step::Untouched])
    }

    /// A plugin further down the list refuses.
    #[must_use]
    pub fn refused_behind(self) -> Self {
        self.steps(&[Step::Refuse(0), Step::Look("refused")])
    }

    /// Deviates from both references.
    #[must_use]
    pub fn differs(mut self, differences: &[Difference]) -> Self {
        self.differences.extend(differences);
        self
    }

    /// Deviates from the newest reference.
    #[must_use]
    pub fn differs_from_new(mut self, differences: &[Difference]) -> Self {
        self.differences_new.extend(differences);
        self
    }

    /// Deviates from the oldest reference.
    #[must_use]
    pub fn differs_from_old(mut self, differences: &[Difference]) -> Self {
        self.differences_old.extend(differences);
        self
    }
}
