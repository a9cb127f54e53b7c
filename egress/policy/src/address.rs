//! What an address is: on the internet, in a range that must be named, or nothing to connect to.
//!
//! **Invariant:** an address that carries another one inside (mapped, translated, tunnelled) is
//! never treated better than the one inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressClass {
    Public,
    /// Reached only where a rule names the range, or a part of it.
    Special(Block),
    /// Where clouds hand out credentials: reached only where a rule names this one address.
    Metadata,
    /// Nobody's: multicast, unassigned, "this host". No rule opens these.
    Never,
}

/// A range that is not the internet, with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub what: &'static str,
    net: Bits,
}

/// A range as the bits of an IPv6 address (IPv4 ones as mapped), so that tables can be constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    bits: u128,
    length: u8,
}

impl Bits {
    const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Bits {
        let bits = Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().to_bits();
        Bits { bits, length: 96 + length }
    }

    const fn v6(segments: [u16; 8], length: u8) -> Bits {
        let [a, b, c, d, e, f, g, h] = segments;
        Bits { bits: Ipv6Addr::new(a, b, c, d, e, f, g, h).to_bits(), length }
    }

    fn of(net: IpNet) -> Bits {
        match net {
            IpNet::V4(net) => {
                Bits { bits: bits(net.network().into()), length: 96 + net.prefix_len() }
            }
            IpNet::V6(net) => Bits { bits: bits(net.network().into()), length: net.prefix_len() },
        }
    }

    fn contains(self, bits: u128) -> bool {
        (self.bits ^ bits).leading_zeros() >= u32::from(self.length)
    }

    fn contains_all_of(self, other: Bits) -> bool {
        self.length <= other.length && self.contains(other.bits)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

const fn block(what: &'static str, net: Bits) -> Block {
    Block { what, net }
}

const SPECIAL: &[Block] = &[
    block("private", Bits::v4(10, 0, 0, 0, 8)),
    block("private", Bits::v4(172, 16, 0, 0, 12)),
    block("private", Bits::v4(192, 168, 0, 0, 16)),
    block("shared (carrier)", Bits::v4(100, 64, 0, 0, 10)),
    block("loopback", Bits::v4(127, 0, 0, 0, 8)),
    block("link-local", Bits::v4(169, 254, 0, 0, 16)),
    block("protocol assignment", Bits::v4(192, 0, 0, 0, 24)),
    block("documentation", Bits::v4(192, 0, 2, 0, 24)),
    block("documentation", Bits::v4(198, 51, 100, 0, 24)),
    block("documentation", Bits::v4(203, 0, 113, 0, 24)),
    block("relay anycast", Bits::v4(192, 88, 99, 0, 24)),
    block("benchmarking", Bits::v4(198, 18, 0, 0, 15)),
    block("loopback", Bits::v6([0, 0, 0, 0, 0, 0, 0, 1], 128)),
    block("unique local", Bits::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7)),
    block("link-local", Bits::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)),
    block("site-local", Bits::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10)),
    block("protocol assignment", Bits::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23)),
    block("documentation", Bits::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32)),
    block("documentation", Bits::v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20)),
    block("local translation", Bits::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48)),
];

const METADATA: &[Bits] = &[
    // Most clouds; container credentials of one of them; its time and name services.
    Bits::v4(169, 254, 169, 254, 32),
    Bits::v4(169, 254, 170, 2, 32),
    Bits::v4(169, 254, 170, 23, 32),
    Bits::v4(169, 254, 169, 253, 32),
    Bits::v4(169, 254, 169, 123, 32),
    Bits::v4(100, 100, 100, 200, 32),
    Bits::v4(192, 0, 0, 192, 32),
    Bits::v4(168, 63, 129, 16, 32),
    Bits::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    Bits::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128),
    Bits::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    Bits::v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
];

const NEVER_V4: &[Bits] =
    &[Bits::v4(0, 0, 0, 0, 8), Bits::v4(224, 0, 0, 0, 4), Bits::v4(240, 0, 0, 0, 4)];

/// What is given out of IPv6.
const GLOBAL_UNICAST: Bits = Bits::v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
/// An IPv4 address in the last 32 bits, reached through a translator.
const TRANSLATED: Bits = Bits::v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
/// An IPv4 address after the first 16 bits, reached through a relay.
const RELAYED: Bits = Bits::v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// An IPv4 address written as IPv6 becomes the IPv4 address that it is.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

pub fn classify(address: IpAddr) -> AddressClass {
    let address = canonical(address);
    let all = bits(address);
    if METADATA.iter().any(|net| net.contains(all)) {
        return AddressClass::Metadata;
    }
    if let Some(block) = SPECIAL.iter().find(|block| block.net.contains(all)) {
        return AddressClass::Special(*block);
    }
    let is_never = match address {
        IpAddr::V4(_) => NEVER_V4.iter().any(|net| net.contains(all)),
        IpAddr::V6(_) => match inside(all) {
            Some(inner) => classify(inner.into()) != AddressClass::Public,
            None => !GLOBAL_UNICAST.contains(all),
        },
    };
    if is_never { AddressClass::Never } else { AddressClass::Public }
}

/// The IPv4 address that an IPv6 one leads to.
fn inside(all: u128) -> Option<Ipv4Addr> {
    let low_32 = |bits: u128| Ipv4Addr::from_bits((bits & 0xffff_ffff) as u32);
    if TRANSLATED.contains(all) {
        return Some(low_32(all));
    }
    RELAYED.contains(all).then(|| low_32(all >> 80))
}

/// A range that a rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Net(IpNet);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    #[error("`{0}` is not an address range: write it like \"10.0.0.0/8\" or \"2001:db8::/32\"")]
    Form(String),
    #[error("`{0}` has bits set behind its prefix: the range is {1}")]
    HostBits(String, IpNet),
    #[error("`{0}` is an IPv4 range written as IPv6: write the IPv4 range")]
    Mapped(String),
}

impl Net {
    /// A single address is a range of one.
    pub fn parse(text: &str) -> Result<Net, NetError> {
        let form = || NetError::Form(text.to_owned());
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse::<IpNet>().map_err(|_| form())?,
        };
        if net.trunc() != net {
            return Err(NetError::HostBits(text.to_owned(), net.trunc()));
        }
        if let IpNet::V6(v6) = net
            && v6.network().to_ipv4_mapped().is_some()
        {
            return Err(NetError::Mapped(text.to_owned()));
        }
        Ok(Net(net))
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&canonical(address))
    }

    /// Whether it holds every address of the other one.
    pub fn covers(&self, other: &Net) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether it names that block: it is the block, or a part of it. "Everything" names nothing.
    pub fn names(&self, block: &Block) -> bool {
        block.net.contains_all_of(Bits::of(self.0))
    }

    pub fn is_one_address(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// The clouds' credential addresses inside it, where it is wider than one of them.
    pub fn holds_metadata(&self) -> bool {
        !self.is_one_address() && METADATA.iter().any(|net| Bits::of(self.0).contains_all_of(*net))
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> AddressClass {
        classify(text.parse().unwrap())
    }

    #[test]
    fn every_way_to_write_an_inner_address_has_its_class() {
        for text in ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert_eq!(class(text), AddressClass::Public, "{text}");
        }
        for text in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"] {
            assert_eq!(class(text), AddressClass::Metadata, "{text}");
        }
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "127.0.0.1", "::1", "fe80::1", "fd00::1"] {
            assert!(matches!(class(text), AddressClass::Special(_)), "{text}");
        }
        let never = [
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "ff02::1",
            "::10.1.2.3",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "4000::1",
        ];
        for text in never {
            assert_eq!(class(text), AddressClass::Never, "{text}");
        }
    }

    #[test]
    fn everything_names_nothing() {
        let AddressClass::Special(block) = class("10.1.2.3") else { panic!() };
        for (net, names) in [
            ("0.0.0.0/0", false),
            ("8.0.0.0/6", false),
            ("10.0.0.0/8", true),
            ("10.1.0.0/16", true),
        ] {
            assert_eq!(Net::parse(net).unwrap().names(&block), names, "{net}");
        }
    }

    #[test]
    fn ranges_that_do_not_say_what_they_mean_are_refused() {
        assert!(matches!(Net::parse("10.0.0.1/8"), Err(NetError::HostBits(..))));
        assert!(matches!(Net::parse("::ffff:10.0.0.0/104"), Err(NetError::Mapped(_))));
        for text in ["", "10/8", "10.0.0.0/33", "example.com", "1.2.3.4/-1"] {
            assert!(matches!(Net::parse(text), Err(NetError::Form(_))), "{text}");
        }
        assert!(Net::parse("10.0.0.1").unwrap().is_one_address());
    }
}
