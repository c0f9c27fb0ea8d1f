//! A rate and its burst in the forms of the two queues that limit.

use rtnetlink::{
    packet_core::{DefaultNla, Nla as _, NlaBuffer, NlasIterator},
    packet_route::tc::{TcAttribute, TcMessage, TcOption},
};

const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const HTB_PARMS: u16 = 1;
const HTB_RATE64: u16 = 6;
const HTB_CEIL64: u16 = 7;
const LINKLAYER_ETHERNET: u8 = 1;
/// Where a `struct tc_ratespec` has its rate.
const RATESPEC_RATE: usize = 8;
const RATESPEC_LEN: usize = 12;

/// How long a packet may wait in a limited queue.
const LATENCY_MS: u64 = 25;
const MICROS_PER_SECOND: u64 = 1_000_000;

/// A rate with its burst, as the kernel's token bucket takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    rate: u64,
    /// How long the burst takes at that rate, in the kernel's ticks of 64 ns.
    buffer: u32,
    /// How many bytes may wait.
    limit: u32,
}

impl TokenBucket {
    /// From bits a second and bits. `None` if a packet could never pass: not a byte a second, or no burst.
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> Option<Self> {
        let (rate, burst) = (rate / 8, burst / 8);
        let saturated = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let micros = saturated(burst.checked_mul(MICROS_PER_SECOND)?.checked_div(rate)?);
        let buffer = saturated(u64::from(micros) * 1000 / 64);
        let waiting = rate.saturating_mul(LATENCY_MS) / 1000;
        (buffer > 0).then_some(Self {
            rate,
            buffer,
            limit: saturated(waiting.saturating_add(burst)),
        })
    }

    fn ratespec(&self) -> [u8; RATESPEC_LEN] {
        let mut spec = [0; RATESPEC_LEN];
        spec[1] = LINKLAYER_ETHERNET;
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        spec[RATESPEC_RATE..].copy_from_slice(&rate.to_ne_bytes());
        spec
    }

    /// A `struct tc_tbf_qopt`, and the rate again where it does not fit into that.
    pub(super) fn tbf(&self) -> Vec<DefaultNla> {
        let mut parms = self.ratespec().to_vec();
        // No peak rate.
        parms.extend([0; RATESPEC_LEN]);
        for number in [self.limit, self.buffer, 0] {
            parms.extend(number.to_ne_bytes());
        }
        let mut options = vec![DefaultNla::new(TBF_PARMS, parms)];
        options.extend(self.rate64(TBF_RATE64));
        options
    }

    /// A `struct tc_htb_opt`. The class may not borrow: its ceiling is its rate.
    pub(super) fn htb(&self) -> Vec<DefaultNla> {
        let mut parms = self.ratespec().to_vec();
        parms.extend(self.ratespec());
        // The quantum matters among classes only, but without one the kernel complains of slow rates.
        let quantum = u32::try_from(self.rate / 10)
            .unwrap_or(u32::MAX)
            .clamp(1500, 200_000);
        for number in [self.buffer, self.buffer, quantum, 0, 0] {
            parms.extend(number.to_ne_bytes());
        }
        let mut options = vec![DefaultNla::new(HTB_PARMS, parms)];
        options.extend(self.rate64(HTB_RATE64));
        options.extend(self.rate64(HTB_CEIL64));
        options
    }

    fn rate64(&self, kind: u16) -> Option<DefaultNla> {
        (self.rate > u64::from(u32::MAX))
            .then(|| DefaultNla::new(kind, self.rate.to_ne_bytes().to_vec()))
    }
}

/// The limit that a link's queue has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLimit {
    /// Bytes a second.
    pub rate: u64,
    /// In ticks.
    buffer: u32,
    /// Whether some subnets are treated differently.
    pub by_subnet: bool,
}

impl LinkLimit {
    /// Whether it is what `bucket` asks for.
    #[must_use]
    pub fn is(&self, bucket: &TokenBucket) -> bool {
        (self.rate, self.buffer) == (bucket.rate, bucket.buffer)
    }

    pub(super) fn of_tbf(queue: &TcMessage) -> Option<Self> {
        let parms = option_of(queue, TBF_PARMS)?;
        Some(Self {
            rate: rate_of(queue, &parms, TBF_RATE64)?,
            buffer: number_at(&parms, 2 * RATESPEC_LEN + 4)?,
            by_subnet: false,
        })
    }

    pub(super) fn of_htb(class: &TcMessage) -> Option<Self> {
        let parms = option_of(class, HTB_PARMS)?;
        Some(Self {
            rate: rate_of(class, &parms, HTB_RATE64)?,
            buffer: number_at(&parms, 2 * RATESPEC_LEN)?,
            by_subnet: true,
        })
    }
}

/// An attribute inside the options of a kind that the netlink crate does not know.
fn option_of(message: &TcMessage, wanted: u16) -> Option<Vec<u8>> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.first(),
            _ => None,
        })?;
    let TcOption::Other(nested) = options else {
        return None;
    };
    let mut bytes = vec![0; nested.value_len()];
    nested.emit_value(&mut bytes);
    NlasIterator::new(bytes.as_slice())
        .flatten()
        .find(|nla: &NlaBuffer<&[u8]>| nla.kind() == wanted)
        .map(|nla| nla.value().to_vec())
}

fn number_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset + 4)?;
    word.try_into().ok().map(u32::from_ne_bytes)
}

fn rate_of(message: &TcMessage, parms: &[u8], rate64: u16) -> Option<u64> {
    match option_of(message, rate64) {
        Some(bytes) => bytes.try_into().ok().map(u64::from_ne_bytes),
        None => number_at(parms, RATESPEC_RATE).map(u64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_the_reference_plugins_numbers() {
        let bucket = TokenBucket::new(1_000_000, 80_000).unwrap();
        assert_eq!(
            (bucket.rate, bucket.buffer, bucket.limit),
            (125_000, 1_250_000, 3_125 + 10_000)
        );
        // Neither a rate below a byte nor a burst of less than a tick lets anything pass.
        assert_eq!(TokenBucket::new(7, 80_000), None);
        assert_eq!(TokenBucket::new(1_000_000, 7), None);
        assert_eq!(TokenBucket::new(u64::MAX, 8), None);
        let most = TokenBucket::new(u64::from(u32::MAX) * 800, u64::from(u32::MAX) * 8).unwrap();
        assert_eq!(most.limit, u32::MAX);
    }
}
