//! What a child tells the agent, in one packet each: fixed forms, read as if a guest wrote them.

use guest_protocol::Block;

/// Longest packet; a reason is cut to fit.
pub const PACKET_BYTES_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The program runs.
    Started {
        pid: i32,
    },
    /// It does not, and never did.
    FailedToStart {
        reason: String,
        /// The program is nowhere.
        missing: bool,
    },
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// The tree is dead, but for so many.
    Swept {
        left: u32,
        jobs: u32,
    },
    /// A file tool has written its output.
    FileDone {
        failed: bool,
        block: Block,
    },
}

/// What the agent tells a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Processes that began before this tick are counted as jobs in the report.
    KillTree {
        ticks: u64,
    },
    /// The program, and of its tree only what began at or after this tick.
    KillSince {
        ticks: u64,
    },
    Signal {
        signal: i32,
    },
}

// === impl Report ===

impl Report {
    pub fn encode(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let mut put = |kind: u8, numbers: &[u32], text: &str| {
            packet.push(kind);
            for number in numbers {
                packet.extend_from_slice(&number.to_le_bytes());
            }
            let room = PACKET_BYTES_MAX - packet.len();
            let cut = text.floor_char_boundary(room);
            packet.extend_from_slice(&text.as_bytes()[..cut]);
        };
        match self {
            Report::Started { pid } => put(1, &[*pid as u32], ""),
            Report::FailedToStart { reason, missing } => put(2, &[u32::from(*missing)], reason),
            Report::Exited { code } => put(3, &[*code as u32], ""),
            Report::Signaled { signal } => put(4, &[*signal as u32], ""),
            Report::Swept { left, jobs } => put(5, &[*left, *jobs], ""),
            Report::FileDone { failed, block } => {
                let (kind, media_type) = match block {
                    Block::Text => (0, ""),
                    Block::Image { media_type } => (1, media_type.as_str()),
                    Block::Document { media_type } => (2, media_type.as_str()),
                };
                put(6, &[u32::from(*failed), kind], media_type);
            }
        }
        packet
    }

    pub fn decode(packet: &[u8]) -> Option<Report> {
        let (kind, rest) = packet.split_first()?;
        let number = |index: usize| {
            let bytes = rest.get(index * 4..index * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let text = |from: usize| Some(String::from_utf8_lossy(rest.get(from..)?).into_owned());
        Some(match kind {
            1 => Report::Started { pid: number(0)? as i32 },
            2 => Report::FailedToStart { missing: number(0)? != 0, reason: text(4)? },
            3 => Report::Exited { code: number(0)? as i32 },
            4 => Report::Signaled { signal: number(0)? as i32 },
            5 => Report::Swept { left: number(0)?, jobs: number(1)? },
            6 => Report::FileDone {
                failed: number(0)? != 0,
                block: match number(1)? {
                    0 => Block::Text,
                    1 => Block::Image { media_type: text(8)? },
                    2 => Block::Document { media_type: text(8)? },
                    _ => return None,
                },
            },
            _ => return None,
        })
    }
}

// === impl Order ===

impl Order {
    pub fn encode(self) -> Vec<u8> {
        let (kind, number) = match self {
            Order::KillTree { ticks } => (1, ticks),
            Order::KillSince { ticks } => (2, ticks),
            Order::Signal { signal } => (3, signal as u64),
        };
        let mut packet = vec![kind];
        packet.extend_from_slice(&number.to_le_bytes());
        packet
    }

    pub fn decode(packet: &[u8]) -> Option<Order> {
        let (kind, number) = packet.split_first()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        Some(match kind {
            1 => Order::KillTree { ticks: number },
            2 => Order::KillSince { ticks: number },
            3 => Order::Signal { signal: number as i32 },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn arbitrary_packets_never_panic(packet: Vec<u8>) {
            let _ = (Report::decode(&packet), Order::decode(&packet));
        }
    }

    #[test]
    fn reports_and_orders_round_trip_and_garbage_is_none() {
        for report in [
            Report::Started { pid: 12 },
            Report::FailedToStart { reason: "no such file".into(), missing: true },
            Report::Exited { code: 255 },
            Report::Signaled { signal: 9 },
            Report::Swept { left: 1, jobs: 2 },
            Report::FileDone { failed: true, block: Block::Text },
            Report::FileDone {
                failed: false,
                block: Block::Image { media_type: "image/png".into() },
            },
        ] {
            let packet = report.encode();
            assert_eq!(Report::decode(&packet), Some(report));
            for cut in 0..packet.len().min(5) {
                let _ = Report::decode(&packet[..cut]);
            }
        }
        for order in [
            Order::KillTree { ticks: 3 },
            Order::KillSince { ticks: 7 },
            Order::Signal { signal: 2 },
        ] {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        assert_eq!(Report::decode(&[9, 9]), None);
        assert_eq!(Order::decode(&[1]), None);
        let long = Report::FailedToStart { reason: "ä".repeat(9000), missing: false }.encode();
        assert!(long.len() <= PACKET_BYTES_MAX);
    }
}
