//! The guest agent as bytes, so that one file is all that has to be installed.
//!
//! The build script builds the agent for the same machine, static, with the profile `guest`.

#![forbid(unsafe_code)]

/// An ELF executable that needs nothing from the image it runs in.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sinew-guest-agent"));

/// The SHA-256 of [`AGENT`], in hex.
pub const BUILD_ID: &str = env!("SINEW_GUEST_BUILD_ID");

#[cfg(test)]
mod tests {
    use super::*;

    /// The header by which a dynamic executable names its loader.
    const PT_INTERP: u32 = 3;

    /// By the layout of a 64-bit little-endian ELF file.
    fn program_header_types() -> Vec<u32> {
        let half = |at: usize| u16::from_le_bytes(AGENT[at..at + 2].try_into().unwrap()) as usize;
        let word = |at: usize| u32::from_le_bytes(AGENT[at..at + 4].try_into().unwrap());
        let (start, size, count) = (word(32) as usize, half(54), half(56));
        (0..count).map(|index| word(start + index * size)).collect()
    }

    #[test]
    fn the_agent_is_static_and_small() {
        assert_eq!(&AGENT[..4], b"\x7fELF");
        assert!(!program_header_types().contains(&PT_INTERP));
        assert!(AGENT.len() < 4 << 20, "{} bytes", AGENT.len());
        assert_eq!(BUILD_ID.len(), 64);
    }
}
