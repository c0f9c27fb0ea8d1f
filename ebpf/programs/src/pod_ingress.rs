//! What a pod gets from the bridge or the node's own stack, where it leaves the node: at the node's end of its veth pair (TCX,
//! egress). What comes from another pod directly never gets here: the sender's program asks the same policies.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use skiff_ebpf_common::{DIRECTION_INGRESS, POD_POLICIES, TraceHook};

use crate::{
    pod_egress::POD_SOURCES,
    pod_frame::{Payload, frame},
    policy::{Ask, admits},
};

/// The hook. Whoever else is attached behind us has a say too (`TCX_NEXT`).
#[classifier]
pub fn pod_ingress(mut ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let port = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: a copy is taken at once.
    let own = unsafe { POD_SOURCES.get(port) }.copied();
    let Some(own) = own.filter(|own| own.flags & POD_POLICIES != 0) else {
        return TC_ACT_UNSPEC;
    };
    let Some(Payload::Ip {
        source,
        destination,
    }) = frame(&mut ctx).map(|frame| frame.payload)
    else {
        return TC_ACT_UNSPEC;
    };
    let ask = Ask {
        subject: own.address_like(&destination),
        source,
        destination,
        ifindex: port,
        direction: DIRECTION_INGRESS,
        hook: TraceHook::PodIngress,
    };
    if admits(&ctx, &ask) {
        TC_ACT_UNSPEC
    } else {
        TC_ACT_SHOT
    }
}
