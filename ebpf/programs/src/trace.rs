//! Tells a tracer what was decided. Costs one look-up while nobody traces.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, RingBuf},
};
use skiff_ebpf_common::{TraceEvent, TraceFilter, limits};

#[map]
static TRACE_FILTER: Array<TraceFilter> = Array::with_max_entries(1, 0);
#[map]
static TRACE_EVENTS: RingBuf = RingBuf::with_byte_size(limits::TRACE_BYTES, 0);

/// Tells it if somebody wants to know. `event` is asked for only while somebody traces.
#[inline(always)]
pub(crate) fn tell(event: impl FnOnce() -> TraceEvent) {
    if let Some(filter) = listening() {
        tell_wanted(filter, &event());
    }
}

/// What somebody wants to know, if there may be somebody.
#[inline(always)]
pub(crate) fn listening() -> Option<&'static TraceFilter> {
    TRACE_FILTER.get(0).filter(|filter| filter.until != 0)
}

/// A function of its own, so that hooks stay short while nobody traces.
#[inline(never)]
pub(crate) fn tell_wanted(filter: &TraceFilter, event: &TraceEvent) {
    // SAFETY: has no arguments.
    let time = unsafe { bpf_ktime_get_coarse_ns() };
    if time > filter.until || !filter.wants(event) {
        return;
    }
    // No room: the tracer is too slow, and misses it.
    if let Some(mut entry) = TRACE_EVENTS.reserve::<TraceEvent>(0) {
        entry.write(TraceEvent { time, ..*event });
        entry.submit(0);
    }
}
