//! Runs the program in an interpreter: every rule, without a process that could be hurt.

use super::*;

const X86_64: u32 = 0xC000_003E;
const I386: u32 = 0x4000_0003;

/// What the kernel's BPF machine answers for this call.
fn answer(
    filter: &[libc::sock_filter],
    architecture: u32,
    number: u32,
    arguments: [u64; 4],
) -> u32 {
    let load = |offset: u32| match offset {
        0 => number,
        4 => architecture,
        16 | 24 | 32 | 40 => arguments[(offset as usize - 16) / 8] as u32,
        20 | 28 | 36 | 44 => (arguments[(offset as usize - 20) / 8] >> 32) as u32,
        other => panic!("load from {other}"),
    };
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let instruction = filter[at];
        let (code, k) = (u32::from(instruction.code), instruction.k);
        at += 1;
        match code & 0x07 {
            libc::BPF_LD => accumulator = load(k),
            libc::BPF_RET => return k,
            libc::BPF_ALU => accumulator &= k,
            libc::BPF_JMP => {
                let taken = match code & 0xF0 {
                    libc::BPF_JEQ => accumulator == k,
                    libc::BPF_JGE => accumulator >= k,
                    libc::BPF_JGT => accumulator > k,
                    libc::BPF_JSET => accumulator & k != 0,
                    other => panic!("jump {other}"),
                };
                at += usize::from(if taken { instruction.jt } else { instruction.jf });
            }
            other => panic!("class {other}"),
        }
    }
}

fn of(number: libc::c_long, arguments: [u64; 3]) -> u32 {
    let [a, b, c] = arguments;
    answer(&filter(), X86_64, number as u32, [a, b, c, 0])
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

fn failed(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

#[test]
#[cfg(target_arch = "x86_64")]
fn lists_do_not_overlap_and_every_entry_gets_its_answer() {
    let filter = filter();
    let mut seen = std::collections::BTreeMap::new();
    let inspected: Vec<_> = inspected().into_iter().map(|(number, _)| number).collect();
    for (list, numbers) in [
        ("allowed", table::ALLOWED),
        ("absorbed", table::ABSORBED),
        ("inspected", &inspected[..]),
        (
            "refused",
            &table::REFUSED.iter().flat_map(|(_, n)| n.iter().copied()).collect::<Vec<_>>(),
        ),
    ] {
        for number in numbers {
            assert_eq!(seen.insert(*number, list), None, "call {number} is on two lists");
        }
    }
    for number in 0..700 {
        let answer = answer(&filter, X86_64, number as u32, [0; 4]);
        let expected = match seen.get(&number) {
            Some(&"allowed") => ALLOWED,
            Some(&"absorbed") => failed(0),
            Some(&"refused") => failed(libc::EPERM),
            Some(_) => continue,
            None => failed(libc::ENOSYS),
        };
        assert_eq!(answer, expected, "call {number}");
    }
}

#[test]
fn other_architectures_do_not_exist() {
    let filter = filter();
    assert_eq!(answer(&filter, I386, 3, [0; 4]), failed(libc::ENOSYS));
    assert_eq!(answer(&filter, X86_64, 0x4000_0000, [0; 4]), failed(libc::ENOSYS));
    assert_eq!(answer(&filter, X86_64, 0x4000_0000 | 135, [0; 4]), failed(libc::ENOSYS));
    assert_eq!(answer(&filter, X86_64, u32::MAX, [0; 4]), failed(libc::ENOSYS));
}

#[test]
fn socket_families_and_protocols() {
    let socket = |family: i32, kind: i32, protocol: i32| {
        of(libc::SYS_socket, [family as u64, kind as u64, protocol as u64])
    };
    let (stream, datagram, raw) =
        (libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::SOCK_DGRAM, libc::SOCK_RAW);
    assert_eq!(socket(libc::AF_UNIX, stream, 0), ALLOWED);
    for family in [libc::AF_INET, libc::AF_INET6] {
        assert_eq!(socket(family, stream, 0), ALLOWED);
        assert_eq!(socket(family, stream, libc::IPPROTO_TCP), ALLOWED);
        assert_eq!(socket(family, datagram, libc::IPPROTO_UDP), ALLOWED);
        assert_eq!(socket(family, datagram, libc::IPPROTO_ICMP), ALLOWED);
        assert_eq!(socket(family, stream, 262), failed(libc::EPROTONOSUPPORT), "MPTCP");
        assert_eq!(socket(family, stream, 132), failed(libc::EPROTONOSUPPORT), "SCTP");
        assert_eq!(socket(family, raw | libc::SOCK_CLOEXEC, 0), failed(libc::EPERM));
        assert_eq!(socket(family, SOCK_PACKET as i32, 0), failed(libc::EPERM));
    }
    assert_eq!(socket(libc::AF_NETLINK, raw, 0), ALLOWED);
    assert_eq!(socket(libc::AF_NETLINK, raw, 9), failed(libc::EPROTONOSUPPORT), "audit");
    for family in [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET, libc::AF_XDP, libc::AF_BLUETOOTH]
    {
        assert_eq!(socket(family, raw, 0), failed(libc::EAFNOSUPPORT), "{family}");
    }
    // The kernel takes an int: a high half must not lead past the rule.
    let high = 1_u64 << 32 | libc::AF_VSOCK as u64;
    assert_eq!(of(libc::SYS_socket, [high, 1, 0]), failed(libc::EAFNOSUPPORT));
}

#[test]
fn arguments_decide_where_they_must() {
    let refused = failed(libc::EPERM);
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
    assert_eq!(of(libc::SYS_clone, [thread, 0, 0]), ALLOWED);
    assert_eq!(of(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]), ALLOWED);
    for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET] {
        assert_eq!(of(libc::SYS_clone, [namespace as u64 | 17, 0, 0]), refused);
    }
    assert_eq!(of(libc::SYS_ioctl, [0, libc::TCGETS, 0]), ALLOWED);
    assert_eq!(of(libc::SYS_ioctl, [0, libc::TIOCSTI, 0]), refused);
    assert_eq!(of(libc::SYS_ioctl, [0, 1 << 32 | libc::TIOCSTI, 0]), refused);
    assert_eq!(of(libc::SYS_ioctl, [0, u64::from(FICLONE), 0]), ALLOWED);
    assert_eq!(of(libc::SYS_ioctl, [0, 0x9408, 0]), failed(libc::ENOTTY), "btrfs sync");
    assert_eq!(of(libc::SYS_ioctl, [0, libc::TIOCSETD, 0]), refused);
    assert_eq!(of(libc::SYS_personality, [0xFFFF_FFFF, 0, 0]), ALLOWED);
    assert_eq!(of(libc::SYS_personality, [0x4_0000, 0, 0]), ALLOWED);
    assert_eq!(of(libc::SYS_personality, [0x0010_0000, 0, 0]), refused);
    let (core, files) = (u64::from(libc::RLIMIT_CORE), u64::from(libc::RLIMIT_NOFILE));
    assert_eq!(of(libc::SYS_setrlimit, [core, 1, 0]), failed(0));
    assert_eq!(of(libc::SYS_setrlimit, [files, 1, 0]), ALLOWED);
    assert_eq!(of(libc::SYS_prlimit64, [0, core, 0]), ALLOWED, "reading");
    assert_eq!(of(libc::SYS_prlimit64, [0, core, 4096]), failed(0));
    assert_eq!(of(libc::SYS_prlimit64, [0, core, 1 << 32]), failed(0), "an odd address");
    assert_eq!(of(libc::SYS_prlimit64, [0, 1 << 32 | core, 4096]), failed(0));
    assert_eq!(of(libc::SYS_prlimit64, [0, files, 4096]), ALLOWED);
    assert_eq!(of(libc::SYS_socketpair, [libc::AF_UNIX as u64, 1, 0]), ALLOWED);
    assert_eq!(of(libc::SYS_socketpair, [30, 1, 0]), failed(libc::EAFNOSUPPORT));
}

#[test]
fn the_hosts_huge_pages_are_not_there() {
    let none = failed(libc::ENOMEM);
    let filter = filter();
    let map =
        |flags: i32| answer(&filter, X86_64, libc::SYS_mmap as u32, [0, 1 << 21, 3, flags as u64]);
    assert_eq!(map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), ALLOWED);
    assert_eq!(map(libc::MAP_SHARED | libc::MAP_POPULATE), ALLOWED);
    assert_eq!(map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB), none);
    assert_eq!(of(libc::SYS_memfd_create, [0, libc::MFD_CLOEXEC.into(), 0]), ALLOWED);
    let gigabyte = u64::from(libc::MFD_CLOEXEC | libc::MFD_HUGETLB) | 30 << 26;
    assert_eq!(of(libc::SYS_memfd_create, [0, gigabyte, 0]), none);
    assert_eq!(of(libc::SYS_shmget, [0, 4096, libc::IPC_CREAT as u64]), ALLOWED);
    let huge = (libc::IPC_CREAT | libc::SHM_HUGETLB) as u64;
    assert_eq!(of(libc::SYS_shmget, [0, 1 << 21, huge]), none);
}

#[test]
fn the_program_fits_the_kernel() {
    assert!(filter().len() <= 4096, "{}", filter().len());
}
