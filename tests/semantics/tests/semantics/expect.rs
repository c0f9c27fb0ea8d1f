//! What clients must find.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Result, bail, ensure};
use skiff_test_harness::probe::protocol::{Answer, Command, How};

use crate::{
    stage::{Front, PATIENCE, SILENCE, Stage},
    who::{Client, TARGET, Who, bridge_address, node_address},
};

const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
const EPERM: i32 = 1;

/// How often a client asks at least where it must not find somebody else, and where it must see everybody at most. A fair
/// choice among four leaves one of them out of 240 with a probability of 1e-29.
const AT_LEAST: u32 = 24;
const AT_MOST: u32 = 240;
const AT_ONCE: u32 = 12;

/// What a client must find at a frontend.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// Each of these, and nobody else.
    To(&'static [Who]),
    /// The same, and they see the client's own address.
    Itself(&'static [Who]),
    /// The kernel's refusal, at once.
    Refused,
    /// Nothing at all.
    Dropped,
    /// No answer; refused, dropped or unreachable.
    Unanswered,
}

impl Stage<'_, '_> {
    /// A row of a table.
    pub(crate) fn check(&mut self, client: Client, front: Front, expect: Expect) -> Result<()> {
        let addr = self.front(front);
        self.expect(client, addr, expect).map_err(|error| {
            error.context(format!(
                "{client:?} at {front:?} ({addr}) expects {expect:?}"
            ))
        })
    }

    /// What a client must find at an address.
    pub(crate) fn expect(
        &mut self,
        client: Client,
        addr: SocketAddr,
        expect: Expect,
    ) -> Result<()> {
        match expect {
            Expect::To(who) => self.reaches(client, addr, who).map(drop),
            Expect::Itself(who) => {
                let answer = self.reaches(client, addr, who)?;
                let own = client.addresses(self.family);
                saw_only(&answer, |source| {
                    own.iter().any(|ip| ip.to_string() == source)
                })
            }
            Expect::Refused => self.refused(client, addr),
            Expect::Dropped => self.fails(client, addr, |errno| errno == ETIMEDOUT),
            Expect::Unanswered => self.fails(client, addr, |_any| true),
        }
    }

    /// Each of these on port 8080 and nobody else answers, in the frontend's name.
    pub(crate) fn reaches(
        &mut self,
        client: Client,
        addr: SocketAddr,
        who: &[Who],
    ) -> Result<Answer> {
        let names: Vec<String> = who.iter().map(|who| who.on(TARGET)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.reaches_names(client, addr, &names)
    }

    /// Each of these names and no other is the answer, in the frontend's name.
    pub(crate) fn reaches_names(
        &mut self,
        client: Client,
        addr: SocketAddr,
        names: &[&str],
    ) -> Result<Answer> {
        let wanted: BTreeSet<&str> = names.iter().copied().collect();
        let mut all = Answer::default();
        loop {
            all.add(self.ask(client, addr, AT_ONCE, PATIENCE)?);
            ensure!(all.errors.is_empty(), "errors: {all:?}");
            let seen: BTreeSet<&str> = all.names.keys().map(String::as_str).collect();
            ensure!(seen.is_subset(&wanted), "somebody else answered: {all:?}");
            if seen == wanted && all.total() >= AT_LEAST {
                break;
            }
            ensure!(all.total() < AT_MOST, "not everybody answered: {all:?}");
        }
        let peer = addr.to_string();
        ensure!(
            all.peers.keys().all(|seen| *seen == peer),
            "the client sees somebody else than {peer}: {all:?}"
        );
        if self.how == How::Udp {
            self.unconnected(client, addr, &wanted)?;
        }
        Ok(all)
    }

    /// A socket that names its peer with each datagram finds the same.
    fn unconnected(
        &mut self,
        client: Client,
        addr: SocketAddr,
        wanted: &BTreeSet<&str>,
    ) -> Result<()> {
        self.how = How::UdpUnconnected;
        let answer = self.ask(client, addr, 4, PATIENCE);
        self.how = How::Udp;
        let answer = answer?;
        ensure!(
            answer.errors.is_empty()
                && answer
                    .names
                    .keys()
                    .all(|name| wanted.contains(name.as_str()))
                && answer.peers.keys().all(|peer| *peer == addr.to_string()),
            "unconnected UDP: {answer:?}"
        );
        Ok(())
    }

    fn refused(&mut self, client: Client, addr: SocketAddr) -> Result<()> {
        let answer = self.ask(client, addr, 3, PATIENCE)?;
        // What a rule refuses on the node's own way out is not permitted: so says the kernel to a datagram's sender.
        let by_rule = client == Client::Host && self.how != How::Tcp;
        let refused = |errno: &i32| *errno == ECONNREFUSED || (by_rule && *errno == EPERM);
        ensure!(
            answer.names.is_empty() && answer.errors.keys().all(refused),
            "not refused: {answer:?}"
        );
        Ok(())
    }

    fn fails(
        &mut self,
        client: Client,
        addr: SocketAddr,
        expected: impl Fn(i32) -> bool,
    ) -> Result<()> {
        let answer = self.ask(client, addr, 2, SILENCE)?;
        ensure!(
            answer.names.is_empty() && answer.errors.keys().all(|errno| expected(*errno)),
            "got through, or failed otherwise: {answer:?}"
        );
        Ok(())
    }

    /// Who answers once; none if nobody does within `patience`.
    pub(crate) fn one(
        &mut self,
        client: Client,
        addr: SocketAddr,
        patience: Duration,
    ) -> Result<Option<String>> {
        Ok(self
            .ask(client, addr, 1, patience)?
            .names
            .into_keys()
            .next())
    }

    /// What an HTTP server answers to `GET /`.
    pub(crate) fn http_status(
        &mut self,
        client: Client,
        addr: SocketAddr,
        status: u16,
    ) -> Result<()> {
        let patience_ms = PATIENCE.as_millis().try_into()?;
        let answer = self.tell(client, &Command::Http { addr, patience_ms })?;
        let wanted = status.to_string();
        ensure!(
            answer.names.keys().eq([&wanted]),
            "not {status} but {answer:?}"
        );
        Ok(())
    }

    /// Who answers on an open socket.
    pub(crate) fn hears(&mut self, client: Client, id: u32) -> Result<String> {
        let answer = self.say(client, id, PATIENCE)?;
        match answer.names.into_keys().next() {
            Some(name) => Ok(name),
            None => bail!("no answer on the open socket: {:?}", answer.errors),
        }
    }

    /// Whether so many new sockets all lead to the same one, and to whom.
    pub(crate) fn sticks(&mut self, client: Client, addr: SocketAddr) -> Result<String> {
        let answer = self.ask(client, addr, AT_LEAST, PATIENCE)?;
        ensure!(answer.errors.is_empty(), "errors: {answer:?}");
        let mut names = answer.names.into_keys();
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            several => bail!("several answered, {several:?} among them"),
        }
    }
}

fn saw_only(answer: &Answer, expected: impl Fn(&str) -> bool) -> Result<()> {
    ensure!(
        answer.sources.keys().all(|source| expected(source)),
        "the backends saw somebody else: {:?}",
        answer.sources
    );
    Ok(())
}

/// The addresses of the node where a NodePort answers.
pub(crate) fn node_addresses(stage: &Stage<'_, '_>) -> [std::net::IpAddr; 2] {
    [node_address(stage.family), bridge_address(stage.family)]
}
