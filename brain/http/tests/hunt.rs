//! Recorded bytes, damaged: every reader returns, whatever comes.

use proptest::prelude::*;

const SEEDS: [&str; 2] =
    [include_str!("fixtures/frames.jsonl"), include_str!("fixtures/answers.jsonl")];

/// The frames and bodies of the recordings, one each.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for line in SEEDS.iter().flat_map(|seed| seed.lines()) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = value.as_str().or_else(|| value["body"].as_str()).unwrap();
        seeds.push(text.as_bytes().to_vec());
    }
    seeds
}

#[derive(Clone, Debug)]
enum Damage {
    Flip { at: usize, with: u8 },
    Cut { from: usize, count: usize },
    Repeat { from: usize, count: usize, times: usize },
    Insert { at: usize, bytes: Vec<u8> },
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>().prop_map(|index| index.index(4096));
    let token = prop::sample::select(vec![
        &b"\\ud800"[..],
        b"\"",
        b"[",
        b"{",
        b"\n\n",
        b"\r",
        b"data:",
        b"event: error\n",
        b"\xff",
        b"null",
        b"1e999",
        b"\xef\xbb\xbf",
        b":",
    ]);
    prop_oneof![
        (at.clone(), any::<u8>()).prop_map(|(at, with)| Damage::Flip { at, with }),
        (at.clone(), 0usize..64).prop_map(|(from, count)| Damage::Cut { from, count }),
        (at.clone(), 0usize..64, 1usize..64).prop_map(|(from, count, times)| Damage::Repeat {
            from,
            count,
            times
        }),
        (at, token).prop_map(|(at, bytes)| Damage::Insert { at, bytes: bytes.to_vec() }),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let range = |from: usize, count: usize| {
        let from = from % (bytes.len() + 1);
        from..(from + count).min(bytes.len())
    };
    match damage {
        Damage::Flip { at, with } => {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte ^= with;
            }
        }
        Damage::Cut { from, count } => drop(bytes.drain(range(*from, *count))),
        Damage::Repeat { from, count, times } => {
            let range = range(*from, *count);
            let piece = bytes[range.clone()].repeat(*times);
            bytes.splice(range.end..range.end, piece);
        }
        Damage::Insert { at, bytes: new } => {
            let range = range(*at, 0);
            bytes.splice(range, new.iter().copied());
        }
    }
}

proptest! {
    #[test]
    fn damaged_recordings_never_panic(
        seed in any::<prop::sample::Index>(),
        damages in proptest::collection::vec(damage(), 0..8),
        chunk in 1u8..64,
    ) {
        let seeds = seeds();
        let mut bytes = seed.get(&seeds).clone();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        brain_http::fuzz_bodies(&bytes);
        bytes.insert(0, chunk);
        brain_http::fuzz_sse(&bytes);
    }
}
