//! Plays the cases with one proxy.

use std::{
    collections::BTreeMap,
    sync::{Mutex, mpsc},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use skiff_test_harness::probe::protocol::How;

use crate::{
    api::Api,
    cases,
    expect::Expect,
    proxy::{self, Mode, Need, Proxy},
    site::Site,
    stage::Front,
    stage::{Player, Run, Stage},
    who::{Client, Ep, Family},
};

/// So many cases at the same time: most of a case is waiting.
const PLAYERS: u8 = 4;

/// A case as it is written.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) play: Play,
}

/// What a case does.
pub(crate) enum Play {
    /// One Service is looked at. Played for each protocol and family.
    Look {
        /// JSON, see [`Stage::service`]; `EXTERNAL` in it stands for the case's external IP.
        spec: &'static str,
        endpoints: &'static [Ep],
        checks: &'static [(Client, Front, Expect)],
    },
    /// Played for each protocol, of IPv4.
    Each(fn(&mut Stage<'_, '_>) -> Result<()>),
    /// Played once, with TCP of IPv4 to begin with.
    Once(fn(&mut Stage<'_, '_>) -> Result<()>),
    /// The same, and no other case is played meanwhile; with the proxy in hand.
    Alone(fn(&mut Stage<'_, '_>) -> Result<()>),
}

/// A case for one protocol and family.
struct Variant {
    name: String,
    case: &'static Case,
    family: Family,
    how: How,
    number: u16,
}

impl Variant {
    /// What the proxy must be able to do.
    fn needs(&self) -> Vec<Need> {
        let mut needs = self.case.needs.to_vec();
        if self.family == Family::V6 {
            needs.push(Need::Ipv6);
        }
        if let Play::Look { checks, .. } = &self.case.play
            && checks.iter().any(|(client, ..)| client.is_outside())
        {
            needs.push(Need::Outside);
        }
        needs
    }

    fn play(&self, player: &mut Player<'_>, proxy: Option<&mut Proxy>) -> Result<()> {
        let mut stage = Stage::open(player, proxy, self.number, (self.family, self.how))?;
        match self.case.play {
            Play::Look {
                spec,
                endpoints,
                checks,
            } => {
                let spec = spec.replace("EXTERNAL", &stage.external(0).to_string());
                let spec: Value = serde_json::from_str(&spec).context("the case's spec")?;
                stage.web(spec, endpoints)?;
                for (client, front, expect) in checks {
                    stage.check(*client, *front, *expect)?;
                }
                Ok(())
            }
            Play::Each(play) | Play::Once(play) | Play::Alone(play) => play(&mut stage),
        }
    }
}

fn variants() -> Vec<Variant> {
    const BOTH: [How; 2] = [How::Tcp, How::Udp];
    let mut all: Vec<Variant> = Vec::new();
    for case in cases::ALL.iter().copied().flatten() {
        let (families, protocols): (&[Family], &[How]) = match case.play {
            Play::Look { .. } => (&[Family::V4, Family::V6], &BOTH),
            Play::Each(_) => (&[Family::V4], &BOTH),
            Play::Once(_) | Play::Alone(_) => (&[Family::V4], &[How::Tcp]),
        };
        for family in families {
            for how in protocols {
                let protocol = if *how == How::Tcp { "tcp" } else { "udp" };
                let name = match case.play {
                    Play::Once(_) | Play::Alone(_) => case.name.to_owned(),
                    _ => format!("{} {protocol} {}", case.name, family.text()),
                };
                all.push(Variant {
                    name,
                    case,
                    family: *family,
                    how: *how,
                    number: 0,
                });
            }
        }
    }
    all
}

/// Plays all cases that the proxy can play and says what came out. True: none failed.
pub(crate) fn play_all(mode: &Mode) -> Result<bool> {
    let begun = Instant::now();
    let only = std::env::var("SKIFF_TEST_CASE").ok();
    let chosen = |variant: &Variant| {
        let only = only.as_ref();
        only.is_none_or(|only| variant.name.contains(only.as_str()))
    };
    let mut not_run: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut to_play = Vec::new();
    for variant in variants().into_iter().filter(chosen) {
        let needs = variant.needs();
        let lack = mode.lacks.iter().find(|(need, _)| needs.contains(need));
        match lack {
            Some((_, why)) => not_run.entry(why).or_default().push(variant.name),
            None => to_play.push(variant),
        }
    }
    let played = to_play.len();
    let failed = play(mode, to_play)?;
    for (why, names) in &not_run {
        println!("not run, {why}: {}", names.join(", "));
    }
    println!(
        "semantics {}: {} passed, {failed} failed, {} not run, in {:.1} s",
        mode.name,
        played - failed,
        not_run.values().map(Vec::len).sum::<usize>(),
        begun.elapsed().as_secs_f64(),
    );
    Ok(failed == 0)
}

/// Plays these; how many failed.
fn play(mode: &Mode, mut variants: Vec<Variant>) -> Result<usize> {
    // From 1: the first address of all is the API's own Service.
    for (number, variant) in (1..).zip(variants.iter_mut()) {
        variant.number = number;
    }
    let site = Site::new()?;
    let api = Api::start(&site.node_netns()?, &site.path("kubeconfig"))?;
    let mut proxy = Proxy::start(mode, &site)?;
    let run = Run { site, api };
    let (alone, together): (Vec<_>, Vec<_>) = variants
        .into_iter()
        .partition(|variant| matches!(variant.case.play, Play::Alone(_)));
    let mut failed = play_together(&run, together)?;
    let mut player = Player::new(&run, PLAYERS)?;
    for variant in alone {
        let begun = Instant::now();
        let result = variant.play(&mut player, Some(&mut proxy));
        failed += tell(&variant.name, begun, &result);
    }
    drop(player);
    if failed > 0 {
        println!("the proxy said at last:\n{}", proxy.said());
    }
    drop(proxy);
    proxy::clean_up(mode, &run.site)?;
    Ok(failed)
}

/// Plays several at a time.
fn play_together(run: &Run, variants: Vec<Variant>) -> Result<usize> {
    let queue = Mutex::new(variants.into_iter());
    let next = || queue.lock().ok()?.next();
    let (told, results) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..PLAYERS {
            let told = told.clone();
            scope.spawn(move || {
                let result = Player::new(run, number).map(|mut player| {
                    let mut failed = 0;
                    while let Some(variant) = next() {
                        let begun = Instant::now();
                        let result = variant.play(&mut player, None);
                        failed += tell(&variant.name, begun, &result);
                    }
                    failed
                });
                told.send(result).ok();
            });
        }
    });
    drop(told);
    results.into_iter().sum()
}

/// Says how a case went; 1 if it failed.
fn tell(name: &str, begun: Instant, result: &Result<()>) -> usize {
    let seconds = begun.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!("ok [{seconds:6.3} s] {name}");
            0
        }
        Err(error) => {
            println!("FAILED [{seconds:6.3} s] {name}: {error:#}");
            1
        }
    }
}
