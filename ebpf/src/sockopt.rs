//! getsockopt: `SO_ORIGINAL_DST` on accepted sockets, for proxies that know nothing of waylay (Envoy's `original_dst`,
//! HAProxy, nginx).
//!
//! Before it: `sockops` has moved the destination onto the accepted socket. The kernel itself has answered
//! `ENOPROTOOPT` or `ENOENT`, as there is no conntrack entry; that is overwritten.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    helpers::generated::bpf_get_netns_cookie,
    programs::SockoptContext,
};
use waylay_common::{
    addr::{Endpoint, Ip},
    counter::Counter,
    flow::{FlowKey, Role},
};

use crate::{
    cells,
    hook::{self, read},
    sockets::{self, PROCEED, write},
};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` are the same number.
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCKADDR_IN_LEN: usize = 16;
const SOCKADDR_IN6_LEN: usize = 28;

#[inline(always)]
pub fn run(ctx: &SockoptContext) -> i32 {
    if read!(ctx.sockopt, optname) == SO_ORIGINAL_DST {
        let answered = match read!(ctx.sockopt, level) {
            SOL_IP => answer_v4(ctx.sockopt),
            SOL_IPV6 => answer_v6(ctx.sockopt),
            _ => false,
        };
        if answered {
            write!((ctx.sockopt, retval) = 0);
            hook::count(Counter::OriginalDstAnswered);
            return PROCEED;
        }
    }
    leave_alone(ctx.sockopt);
    PROCEED
}

/// Options over a page come without their whole value; the kernel then wants to hear that it was not touched.
#[inline(always)]
fn leave_alone(sockopt: *mut bpf_sockopt) {
    let start = read!(sockopt, __bindgen_anon_2.optval) as usize;
    let end = read!(sockopt, __bindgen_anon_3.optval_end) as usize;
    if read!(sockopt, optlen) as usize > end - start {
        write!((sockopt, optlen) = 0);
    }
}

/// A `sockaddr_in`, when the application dialled IPv4.
#[inline(always)]
fn answer_v4(sockopt: *mut bpf_sockopt) -> bool {
    let Some(original_dst) = original_dst(sockopt).filter(|dst| dst.ip().is_v4()) else {
        return false;
    };
    let start = read!(sockopt, __bindgen_anon_2.optval).cast::<u8>();
    let end = read!(sockopt, __bindgen_anon_3.optval_end).cast::<u8>();
    // SAFETY: the verifier demands exactly this comparison; beyond it the sixteen bytes are ours to write.
    unsafe {
        if start.add(SOCKADDR_IN_LEN) > end {
            return false;
        }
        start.cast::<u16>().write(AF_INET);
        start.add(2).cast::<u16>().write(original_dst.port().to_be());
        start.add(4).cast::<u32>().write(original_dst.ip().v4_word());
        start.add(8).cast::<u64>().write(0);
    }
    write!((sockopt, optlen) = SOCKADDR_IN_LEN as i32);
    true
}

/// A `sockaddr_in6`, when the application dialled IPv6.
#[inline(always)]
fn answer_v6(sockopt: *mut bpf_sockopt) -> bool {
    let Some(original_dst) = original_dst(sockopt).filter(|dst| !dst.ip().is_v4()) else {
        return false;
    };
    let start = read!(sockopt, __bindgen_anon_2.optval).cast::<u8>();
    let end = read!(sockopt, __bindgen_anon_3.optval_end).cast::<u8>();
    let words = original_dst.ip().words();
    // SAFETY: as in `answer_v4`, for twenty-eight bytes.
    unsafe {
        if start.add(SOCKADDR_IN6_LEN) > end {
            return false;
        }
        start.cast::<u16>().write(AF_INET6);
        start.add(2).cast::<u16>().write(original_dst.port().to_be());
        start.add(4).cast::<u32>().write(0);
        start.add(8).cast::<u32>().write(words[0]);
        start.add(12).cast::<u32>().write(words[1]);
        start.add(16).cast::<u32>().write(words[2]);
        start.add(20).cast::<u32>().write(words[3]);
        start.add(24).cast::<u32>().write(0);
    }
    write!((sockopt, optlen) = SOCKADDR_IN6_LEN as i32);
    true
}

#[inline(always)]
fn original_dst(sockopt: *mut bpf_sockopt) -> Option<Endpoint> {
    let sk = read!(sockopt, __bindgen_anon_1.sk);
    if sk.is_null() {
        return None;
    }
    if let Some(state) = sockets::socket_state(sk) {
        return (state.role() == Some(Role::Accepted)).then_some(state.original_dst);
    }
    let port = read!(sk, src_port) as u16;
    if !sockets::is_agents_port(port) {
        return None;
    }
    let remote_port = u16::from_be(read!(sk, dst_port));
    let (local, remote) = addresses(sk);
    // SAFETY: the helper takes this hook's context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(sockopt.cast()) };
    let key = FlowKey::new(netns_cookie, Endpoint::new(remote, remote_port), Endpoint::new(local, port));
    // It may be asked for as often as one likes, and the cell is not for ever.
    if cells::move_out(&key, |origin| _ = sockets::put(sk, &origin.state(Role::Accepted))) == Some(false) {
        sockets::remove(sk);
    }
    sockets::socket_state(sk).map(|state| state.original_dst)
}

/// The addresses of this end and the other one; of an IPv4-mapped connection the IPv4 addresses.
#[inline(always)]
fn addresses(sk: *mut bpf_sock) -> (Ip, Ip) {
    if read!(sk, family) != u32::from(AF_INET) {
        let remote = Ip::from_words([
            read!(sk, dst_ip6[0]),
            read!(sk, dst_ip6[1]),
            read!(sk, dst_ip6[2]),
            read!(sk, dst_ip6[3]),
        ]);
        if !remote.is_v4() {
            let local = Ip::from_words([
                read!(sk, src_ip6[0]),
                read!(sk, src_ip6[1]),
                read!(sk, src_ip6[2]),
                read!(sk, src_ip6[3]),
            ]);
            return (local, remote);
        }
    }
    (Ip::from_v4_word(read!(sk, src_ip4)), Ip::from_v4_word(read!(sk, dst_ip4)))
}
