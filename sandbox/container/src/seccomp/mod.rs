//! The system calls a guest may make: an allow-list, as a classic BPF program.
//!
//! What is not known answers ENOSYS, so that libraries fall back as on an older kernel. What is
//! known and forbidden answers what tools expect of a system without the permission. The kernel
//! caches the plainly allowed calls, so the length of the program costs only the few calls whose
//! arguments are looked at.

mod program;
mod table;

use program::{ALLOW, Block, Program, errno};

/// Builds the filter for this machine's architecture.
pub fn filter() -> Vec<libc::sock_filter> {
    let mut program = Program::new();
    for (number, block) in inspected() {
        program.inspect(number, block);
    }
    for (error, numbers) in table::REFUSED {
        for number in *numbers {
            program.answer(*number, errno(*error));
        }
    }
    // Nothing to do is the right answer: what could be written to the disk is not the guest's to
    // decide (the overlay is volatile), and a storm of these slows every neighbour.
    for number in table::ABSORBED {
        program.answer(*number, errno(0));
    }
    program.allow(table::ALLOWED);
    program.finish(errno(libc::ENOSYS))
}

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// `personality` values that change nothing a wall depends on: the default, 32-bit and 2.6
/// look-alikes, no address randomisation (debuggers), and the question which one is set.
const PERSONALITIES: [u32; 6] = [0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0xFFFF_FFFF];

/// A type of socket that makes any internet family the packet family.
const SOCK_PACKET: u32 = 10;

/// In the flags of `memfd_create`, for pages of the host's pool of huge ones.
const MFD_HUGETLB: u32 = 4;

const BTRFS_AND_CLONE_MAGIC: u32 = 0x9400;
const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940D;
const FIDEDUPERANGE: u32 = 0xC018_9436;

/// Calls whose arguments decide. Only the lower half of an argument is compared where the kernel
/// itself takes an `int`.
fn inspected() -> Vec<(libc::c_long, Block)> {
    let refused = errno(libc::EPERM);
    // As where there are none. They are the host's, and no limit of a sandbox counts them.
    let no_huge_pages = errno(libc::ENOMEM);
    let huge = |argument: u32, flag: u32| {
        Block::new().load(argument).when_any(flag, no_huge_pages).finally(ALLOW)
    };
    vec![
        (libc::SYS_mmap, huge(3, libc::MAP_HUGETLB as u32)),
        (libc::SYS_memfd_create, huge(1, MFD_HUGETLB)),
        (libc::SYS_shmget, huge(2, libc::SHM_HUGETLB as u32)),
        (libc::SYS_ioctl, ioctl()),
        (libc::SYS_clone, Block::new().load(0).when_any(NEW_NAMESPACES, refused).finally(ALLOW)),
        (libc::SYS_socket, socket()),
        (
            libc::SYS_socketpair,
            Block::new()
                .load(0)
                .when(libc::AF_UNIX as u32, ALLOW)
                .finally(errno(libc::EAFNOSUPPORT)),
        ),
        (
            libc::SYS_personality,
            PERSONALITIES
                .into_iter()
                .fold(Block::new().load(0), |block, value| block.when(value, ALLOW))
                .finally(refused),
        ),
        (
            libc::SYS_setrlimit,
            Block::new().load(0).when(libc::RLIMIT_CORE, errno(0)).finally(ALLOW),
        ),
        (
            libc::SYS_prlimit64,
            Block::new().load(1).branch(libc::RLIMIT_CORE, core_limit()).finally(ALLOW),
        ),
    ]
}

/// May be read; a change is absorbed, because programs that want no dump fail if they cannot say
/// so. The limit that the sandbox starts with keeps the host's crash handler from running; any
/// other, zero included, would not.
fn core_limit() -> Block {
    let absorbed = errno(0);
    Block::new()
        .load(2)
        .when_any(u32::MAX, absorbed)
        .load_upper(2)
        .when_any(u32::MAX, absorbed)
        .finally(ALLOW)
}

fn ioctl() -> Block {
    Block::new()
        .load(1)
        // Typing into somebody else's terminal.
        .when(libc::TIOCSTI as u32, errno(libc::EPERM))
        .when(libc::TIOCLINUX as u32, errno(libc::EPERM))
        // Line disciplines are drivers with a history of holes, loaded on demand.
        .when(libc::TIOCSETD as u32, errno(libc::EPERM))
        .when(FICLONE, ALLOW)
        .when(FICLONERANGE, ALLOW)
        .when(FIDEDUPERANGE, ALLOW)
        // The output directory is a btrfs mount: its commits and searches are not the guest's.
        .mask(0xFF00)
        .when(BTRFS_AND_CLONE_MAGIC, errno(libc::ENOTTY))
        .finally(ALLOW)
}

fn socket() -> Block {
    let no_protocol = errno(libc::EPROTONOSUPPORT);
    let netlink = Block::new()
        .load(2)
        .when(libc::NETLINK_ROUTE as u32, ALLOW)
        // `useradd` aborts on any other answer for the audit protocol.
        .finally(no_protocol);
    // MPTCP, SCTP and their like are kernel code that no gate has seen.
    let internet = || {
        [0, libc::IPPROTO_ICMP, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMPV6]
            .into_iter()
            .fold(
                Block::new()
                    .load(1)
                    .mask(0xF)
                    .when(libc::SOCK_RAW as u32, errno(libc::EPERM))
                    .when(SOCK_PACKET, errno(libc::EPERM))
                    .load(2),
                |block, protocol| block.when(protocol as u32, ALLOW),
            )
            .finally(no_protocol)
    };
    Block::new()
        .load(0)
        .when(libc::AF_UNIX as u32, ALLOW)
        .branch(libc::AF_NETLINK as u32, netlink)
        .branch(libc::AF_INET as u32, internet())
        .branch(libc::AF_INET6 as u32, internet())
        .finally(errno(libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests;
