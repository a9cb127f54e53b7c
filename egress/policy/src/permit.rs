//! The only value that lets a connection be dialled.
//!
//! Constructors are private to this crate and called in one place (`crate::decide`), after the
//! verdict. A dialler takes a [`Dial`]; a `Dial` comes from [`Permit::admit`] only, which checks the
//! address that was resolved; so there is no path to a socket around the engine, and none around
//! the address check.
//!
//! ```compile_fail
//! // No field can be named from outside.
//! let dial = egress_policy::Dial { address: "127.0.0.1:1".parse().unwrap() };
//! ```
//! ```compile_fail
//! // And a permit is not there twice.
//! fn twice(permit: egress_policy::Permit) { let _ = permit.clone(); }
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::address::{AddressClass, Net, canonical, classify};
use crate::decision::RuleRef;
use crate::host::Host;
use crate::request::Destination;
use crate::set::Revision;

/// Leave to reach one destination, under one revision of the policies.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    destination: Destination,
    way: Way,
    revision: Revision,
    guard: Guard,
}

/// How the destination is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its address, after [`Permit::admit`].
    Internet,
    /// A private service behind a connector. Nothing is resolved or dialled here.
    Service(String),
}

/// An address that a permit admitted.
#[derive(Debug, PartialEq, Eq)]
pub struct Dial {
    address: SocketAddr,
}

/// Which addresses the name may turn out to have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Guard {
    /// The address that the request itself names, by a rule of the deployment or not.
    pub literal: Option<IpAddr>,
    pub literal_is_named: bool,
    /// For each layer whose rules all give ranges: those.
    pub within: Vec<Vec<Net>>,
    /// Ranges of the deployment's rules: what is not the internet is open only inside them.
    pub named: Vec<Net>,
    pub closed: Vec<(Net, RuleRef)>,
    /// Closed for the whole session, shared by all its permits.
    pub always_closed: Arc<[(Net, RuleRef)]>,
}

/// Why an address is not dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    #[error("{address} is closed by {rule}")]
    Closed { address: IpAddr, rule: RuleRef },
    #[error("{address} is a {what} address, and no rule of the deployment names its range")]
    Special { address: IpAddr, what: &'static str },
    #[error("{address} is where clouds hand out credentials, and no rule names it by itself")]
    Metadata { address: IpAddr },
    #[error("{address} is an address that nothing can be reached at")]
    Never { address: IpAddr },
    #[error("{address} is outside the ranges of the rules that open the host")]
    OutOfRange { address: IpAddr },
    #[error("{address} is not the address that was asked for")]
    OtherAddress { address: IpAddr },
    #[error("the destination is a private service and has no address")]
    Service,
}

impl Permit {
    pub(crate) fn new(
        destination: Destination,
        way: Way,
        revision: Revision,
        guard: Guard,
    ) -> Permit {
        Permit { destination, way, revision, guard }
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The policies it was given under. A gate drops it when there are newer ones.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether the destination may be reached at this address, to which it was resolved.
    pub fn admit(&self, address: IpAddr) -> Result<Dial, AddressRefused> {
        match self.way {
            Way::Service(_) => Err(AddressRefused::Service),
            Way::Internet => {
                let address = self.guard.check(address)?;
                Ok(Dial { address: SocketAddr::new(address, self.destination.port) })
            }
        }
    }
}

impl Dial {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Guard {
    pub(crate) fn check(&self, address: IpAddr) -> Result<IpAddr, AddressRefused> {
        let address = canonical(address);
        if self.literal.is_some_and(|literal| literal != address) {
            return Err(AddressRefused::OtherAddress { address });
        }
        let closed = self.closed.iter().chain(self.always_closed.iter());
        if let Some((_, rule)) = closed.into_iter().find(|(net, _)| net.contains(address)) {
            return Err(AddressRefused::Closed { address, rule: rule.clone() });
        }
        let named = |names: &dyn Fn(&Net) -> bool| {
            self.literal_is_named
                || self.named.iter().any(|net| net.contains(address) && names(net))
        };
        match classify(address) {
            AddressClass::Public => {}
            AddressClass::Never => return Err(AddressRefused::Never { address }),
            AddressClass::Special(block) if !named(&|net| net.names(&block)) => {
                return Err(AddressRefused::Special { address, what: block.what });
            }
            AddressClass::Metadata if !named(&Net::is_one_address) => {
                return Err(AddressRefused::Metadata { address });
            }
            AddressClass::Special(_) | AddressClass::Metadata => {}
        }
        match self.within.iter().all(|nets| nets.iter().any(|net| net.contains(address))) {
            true => Ok(address),
            false => Err(AddressRefused::OutOfRange { address }),
        }
    }
}

impl Destination {
    pub(crate) fn literal(&self) -> Option<IpAddr> {
        match self.host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        }
    }
}
