//! The benchmarks: what is measured, and how.

mod memory;
mod peer;
mod sandboxes;
mod tool_call;

use bench::Report;

use crate::scratch::Scratch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// `create` to the answer of a first program, launcher included.
    ContainerStart,
    /// A program in a running sandbox, there and back.
    Exec,
    /// The brain's event to our result at the brain.
    ToolCall,
    /// What a sandbox that does nothing takes from the machine.
    IdleMemory,
}

impl Benchmark {
    pub const ALL: [Benchmark; 4] =
        [Benchmark::ContainerStart, Benchmark::Exec, Benchmark::ToolCall, Benchmark::IdleMemory];

    pub fn name(self) -> &'static str {
        match self {
            Benchmark::ContainerStart => "container-start",
            Benchmark::Exec => "exec",
            Benchmark::ToolCall => "tool-call",
            Benchmark::IdleMemory => "idle-memory",
        }
    }

    pub async fn measure(self, scratch: &mut Scratch, runs: usize) -> anyhow::Result<Report> {
        match self {
            Benchmark::ContainerStart => sandboxes::container_start(scratch, runs).await,
            Benchmark::Exec => sandboxes::exec(scratch, runs).await,
            Benchmark::ToolCall => tool_call::tool_call(scratch, runs).await,
            Benchmark::IdleMemory => memory::idle_memory(scratch).await,
        }
    }
}
