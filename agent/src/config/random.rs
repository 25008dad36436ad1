//! Random values of the configuration, for the round-trip property: what is written must be read back equal.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use rand::RngExt;
use rand::rngs::SmallRng;

/// Texts that YAML takes for something else unless they are written with care.
const TEXTS: [&str; 27] = [
    "",
    " ",
    "~",
    "null",
    "true",
    "0x1F",
    "1.10",
    "- a",
    "a: b",
    "a #b",
    "#",
    "\"",
    "'",
    "\\1",
    "a\nb\n",
    "\t",
    "*x",
    "&x",
    "!x",
    "%20",
    "@",
    "{a}",
    "[a]",
    "\u{85}\u{2028}",
    "\u{feff}x",
    "\0\u{1b}\u{7f}",
    "ключ🔑",
];

/// A text, often a difficult one.
pub fn text(rng: &mut SmallRng) -> String {
    let mut text = String::new();
    for _ in 0..rng.random_range(1..4) {
        text += one_of(rng, TEXTS);
        text += one_of(rng, ["", "shop", "/cart", "x-canary", " "]);
    }
    text
}

/// One of `values`.
pub fn one_of<T, const N: usize>(rng: &mut SmallRng, values: [T; N]) -> T {
    let index = rng.random_range(0..N);
    values.into_iter().nth(index).expect("an index below the length")
}

/// A short list.
pub fn list<T>(rng: &mut SmallRng, mut element: impl FnMut(&mut SmallRng) -> T) -> Vec<T> {
    (0..rng.random_range(0..3)).map(|_| element(rng)).collect()
}

/// Something, or nothing.
pub fn option<T>(rng: &mut SmallRng, element: impl FnOnce(&mut SmallRng) -> T) -> Option<T> {
    rng.random::<bool>().then(|| element(rng))
}

/// Any duration up to a year, in units of all sizes.
pub fn duration(rng: &mut SmallRng) -> Duration {
    let unit = one_of(rng, [1, 1_000, 1_000_000, 1_000_000_000, 60_000_000_000, 3_600_000_000_000]);
    Duration::from_nanos(rng.random_range(0..8760) * unit)
}

/// An address of either family.
pub fn ip(rng: &mut SmallRng) -> IpAddr {
    if rng.random() { IpAddr::from(rng.random::<[u8; 4]>()) } else { IpAddr::from(rng.random::<[u8; 16]>()) }
}

/// An address with a port.
pub fn address(rng: &mut SmallRng) -> SocketAddr {
    SocketAddr::new(ip(rng), rng.random())
}

/// A network.
pub fn net(rng: &mut SmallRng) -> IpNet {
    let ip = ip(rng);
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    IpNet::new(ip, rng.random_range(0..=longest)).expect("a prefix length in range").trunc()
}
