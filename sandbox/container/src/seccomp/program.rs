//! A small assembler for the filter.

/// What the filter answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer(u32);

pub const ALLOW: Answer = Answer(libc::SECCOMP_RET_ALLOW);

pub const fn errno(number: i32) -> Answer {
    Answer(libc::SECCOMP_RET_ERRNO | (number as u32 & libc::SECCOMP_RET_DATA))
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Numbers from here on are the x32 ABI's.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

// Offsets in `struct seccomp_data`; both architectures are little-endian.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;

fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: then, jf: otherwise, k }
}

/// Instructions that look at arguments and always end in an answer.
pub struct Block(Vec<libc::sock_filter>);

impl Block {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes the lower half of an argument.
    pub fn load(mut self, argument: u32) -> Self {
        self.0.push(statement(LOAD, ARGUMENTS_AT + 8 * argument));
        self
    }

    /// Takes the upper half of an argument.
    pub fn load_upper(mut self, argument: u32) -> Self {
        self.0.push(statement(LOAD, ARGUMENTS_AT + 8 * argument + 4));
        self
    }

    pub fn mask(mut self, bits: u32) -> Self {
        self.0.push(statement(AND, bits));
        self
    }

    pub fn when(mut self, value: u32, answer: Answer) -> Self {
        self.0.push(jump(IF_EQUAL, value, 0, 1));
        self.0.push(statement(RETURN, answer.0));
        self
    }

    pub fn when_any(mut self, bits: u32, answer: Answer) -> Self {
        self.0.push(jump(IF_ANY_BIT, bits, 0, 1));
        self.0.push(statement(RETURN, answer.0));
        self
    }

    /// Goes on in `block`, which does not come back.
    pub fn branch(mut self, value: u32, block: Block) -> Self {
        self.0.push(jump(IF_EQUAL, value, 0, length(&block)));
        self.0.extend(block.0);
        self
    }

    pub fn finally(mut self, answer: Answer) -> Self {
        self.0.push(statement(RETURN, answer.0));
        self
    }
}

fn length(block: &Block) -> u8 {
    // Blocks are written by hand above; the longest has a few dozen instructions.
    u8::try_from(block.0.len()).unwrap_or_else(|_| unreachable!("a block fits a BPF jump"))
}

pub struct Program(Vec<libc::sock_filter>);

impl Program {
    /// Begins by refusing every other architecture's numbering.
    pub fn new() -> Self {
        let unknown = errno(libc::ENOSYS);
        let mut instructions = vec![
            statement(LOAD, ARCHITECTURE_AT),
            jump(IF_EQUAL, ARCHITECTURE, 1, 0),
            statement(RETURN, unknown.0),
            statement(LOAD, NUMBER_AT),
        ];
        #[cfg(target_arch = "x86_64")]
        instructions.extend([jump(IF_AT_LEAST, X32_BIT, 0, 1), statement(RETURN, unknown.0)]);
        Self(instructions)
    }

    pub fn inspect(&mut self, number: libc::c_long, block: Block) {
        self.0.push(jump(IF_EQUAL, number as u32, 0, length(&block)));
        self.0.extend(block.0);
    }

    pub fn answer(&mut self, number: libc::c_long, answer: Answer) {
        self.0.push(jump(IF_EQUAL, number as u32, 0, 1));
        self.0.push(statement(RETURN, answer.0));
    }

    /// Allows `numbers`, in ranges, so that the program stays short.
    pub fn allow(&mut self, numbers: &[libc::c_long]) {
        let mut numbers: Vec<u32> = numbers.iter().map(|number| *number as u32).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for range in numbers.chunk_by(|a, b| a + 1 == *b) {
            let (Some(first), Some(last)) = (range.first(), range.last()) else { continue };
            self.0.push(jump(IF_AT_LEAST, *first, 0, 2));
            self.0.push(jump(IF_ABOVE, *last, 1, 0));
            self.0.push(statement(RETURN, ALLOW.0));
        }
    }

    pub fn finish(mut self, answer: Answer) -> Vec<libc::sock_filter> {
        self.0.push(statement(RETURN, answer.0));
        self.0
    }
}
