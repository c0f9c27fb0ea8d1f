//! The members of a set by where they are.

use std::{collections::HashMap, net::IpAddr};

use super::{Backend, Member};

/// So many are looked through one by one: most sets are small, and there are many of them.
const FEW: usize = 16;

/// Finds members.
pub(super) struct Known<'a> {
    members: &'a [Member],
    /// Places in `members`; empty if these are few.
    index: HashMap<(IpAddr, u16), usize>,
}

impl<'a> Known<'a> {
    /// Of one set.
    pub(super) fn of(members: &'a [Member]) -> Self {
        let indexed = if members.len() > FEW { members } else { &[] };
        let places = indexed.iter().map(|member| place(&member.backend));
        Self {
            members,
            index: places.zip(0..).collect(),
        }
    }

    /// The member with that address and port, whatever else is known of it.
    pub(super) fn get(&self, backend: &Backend) -> Option<Member> {
        let place = place(backend);
        let found = if self.members.len() > FEW {
            self.members.get(*self.index.get(&place)?)
        } else {
            self.members
                .iter()
                .find(|member| self::place(&member.backend) == place)
        };
        found.copied()
    }
}

fn place(backend: &Backend) -> (IpAddr, u16) {
    (backend.addr, backend.port)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn few_and_many_members_are_found_alike() {
        for count in [0, 1, 16, 17, 200] {
            let backend = |port| Backend::new(Ipv4Addr::LOCALHOST.into(), port);
            let members: Vec<Member> = (0..count)
                .map(|port| Member {
                    backend: backend(port),
                    id: u32::from(port) + 7,
                })
                .collect();
            let known = Known::of(&members);
            for port in 0..count {
                let terminating = Backend {
                    terminating: true,
                    ..backend(port)
                };
                let id = known.get(&terminating).map(|member| member.id);
                assert_eq!(id, Some(u32::from(port) + 7));
            }
            assert!(known.get(&backend(count)).is_none());
        }
    }
}
