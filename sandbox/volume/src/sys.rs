//! The ioctls of loop devices and btrfs, each behind a safe function.
//!
//! Layouts are those of `linux/loop.h` and `linux/btrfs.h`; sizes are asserted below because the
//! size is part of the request number.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

const NAME_MAX_V1: usize = 4087;
const NAME_MAX_V2: usize = 4039;

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; NAME_MAX_V1 + 1],
}

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    size: u64,
    inherit: *const Inherit,
    unused: [u64; 2],
    name: [u8; NAME_MAX_V2 + 1],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct QgroupLimit {
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// With room for exactly one parent qgroup.
#[repr(C)]
struct Inherit {
    flags: u64,
    num_qgroups: u64,
    num_ref_copies: u64,
    num_excl_copies: u64,
    limit: QgroupLimit,
    parent: u64,
}

#[repr(C)]
struct QgroupLimitArgs {
    qgroupid: u64,
    limit: QgroupLimit,
}

#[repr(C)]
struct QgroupCreateArgs {
    create: u64,
    qgroupid: u64,
}

#[repr(C)]
struct QuotaCtlArgs {
    cmd: u64,
    status: u64,
}

#[repr(C)]
struct InoLookupArgs {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct FsInfoArgs {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = {
    assert!(size_of::<VolArgs>() == 4096);
    assert!(size_of::<VolArgsV2>() == 4096);
    assert!(size_of::<Inherit>() == 80);
    assert!(size_of::<InoLookupArgs>() == 4096);
    assert!(size_of::<FsInfoArgs>() == 1024);
    assert!(size_of::<LoopInfo>() == 232);
    assert!(size_of::<LoopConfig>() == 304);
};

/// The device goes away by itself with its last user.
pub const LOOP_AUTOCLEAR: u32 = 4;
pub const LOOP_DIRECT_IO: u32 = 16;

const SUBVOL_RDONLY: u64 = 1 << 1;
const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
const QGROUP_LIMIT_MAX_REFERENCED: u64 = 1;
const QUOTA_ENABLE: u64 = 1;
const ROOT_DIR_OBJECT: u64 = 256;

mod raw {
    use super::*;

    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
    nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo);

    nix::ioctl_write_ptr!(resize, 0x94, 3, VolArgs);
    nix::ioctl_none!(sync, 0x94, 8);
    nix::ioctl_readwrite!(ino_lookup, 0x94, 18, InoLookupArgs);
    nix::ioctl_write_ptr!(snap_create_v2, 0x94, 23, VolArgsV2);
    nix::ioctl_write_ptr!(subvol_create_v2, 0x94, 24, VolArgsV2);
    nix::ioctl_read!(fs_info, 0x94, 31, FsInfoArgs);
    nix::ioctl_readwrite!(quota_ctl, 0x94, 40, QuotaCtlArgs);
    nix::ioctl_write_ptr!(qgroup_create, 0x94, 42, QgroupCreateArgs);
    // The kernel's header calls it a read; it is not.
    nix::ioctl_write_ptr_bad!(
        qgroup_limit,
        nix::request_code_read!(0x94, 43, size_of::<QgroupLimitArgs>()),
        QgroupLimitArgs
    );
    nix::ioctl_none!(quota_rescan_wait, 0x94, 46);
    nix::ioctl_write_ptr!(snap_destroy_v2, 0x94, 63, VolArgsV2);
}

fn done(result: nix::Result<i32>) -> io::Result<i32> {
    result.map_err(io::Error::from)
}

// === loop devices ===

/// The number of a loop device that nobody uses at this moment.
pub fn loop_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let number = done(unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) })?;
    u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

pub fn loop_configure(device: BorrowedFd<'_>, file: RawFd, flags: u32) -> io::Result<()> {
    // SAFETY: plain numbers and bytes; all zero is a valid value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file as u32;
    config.block_size = 4096;
    config.info.flags = flags;
    // SAFETY: `config` is a whole `struct loop_config` and outlives the call.
    done(unsafe { raw::loop_configure(device.as_raw_fd(), &config) }).map(drop)
}

/// Tells the device that its file has grown.
pub fn loop_set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    done(unsafe { raw::loop_set_capacity(device.as_raw_fd()) }).map(drop)
}

pub fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    done(unsafe { raw::loop_clr_fd(device.as_raw_fd()) }).map(drop)
}

/// Device and inode number of the file behind a loop device.
pub fn loop_backing(device: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: plain numbers and bytes; all zero is a valid value.
    let mut info: LoopInfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a whole `struct loop_info64` and outlives the call.
    done(unsafe { raw::loop_get_status64(device.as_raw_fd(), &mut info) })?;
    Ok((info.device, info.inode))
}

// === btrfs ===

fn vol_args_v2(name: &CStr) -> io::Result<Box<VolArgsV2>> {
    let bytes = name.to_bytes();
    if bytes.len() > NAME_MAX_V2 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut args = Box::new(VolArgsV2 {
        fd: 0,
        transid: 0,
        flags: 0,
        size: 0,
        inherit: std::ptr::null(),
        unused: [0; 2],
        name: [0; NAME_MAX_V2 + 1],
    });
    args.name[..bytes.len()].copy_from_slice(bytes);
    Ok(args)
}

fn inherit_from(parent_qgroup: u64) -> Inherit {
    Inherit {
        flags: 0,
        num_qgroups: 1,
        num_ref_copies: 0,
        num_excl_copies: 0,
        limit: QgroupLimit::default(),
        parent: parent_qgroup,
    }
}

/// Makes subvolume `name` in `directory`, a member of `parent_qgroup` from its first byte.
pub fn subvolume_create(
    directory: BorrowedFd<'_>,
    name: &CStr,
    parent_qgroup: u64,
) -> io::Result<()> {
    let inherit = inherit_from(parent_qgroup);
    let mut args = vol_args_v2(name)?;
    args.flags = SUBVOL_QGROUP_INHERIT;
    args.size = size_of::<Inherit>() as u64;
    args.inherit = &inherit;
    // SAFETY: `args` and the `inherit` it points to outlive the call; `size` is its true size.
    done(unsafe { raw::subvol_create_v2(directory.as_raw_fd(), &*args) }).map(drop)
}

pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Makes `name` in `directory` a snapshot of the subvolume `source`.
pub fn snapshot_create(
    source: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &CStr,
    access: Access,
    parent_qgroup: u64,
) -> io::Result<()> {
    let inherit = inherit_from(parent_qgroup);
    let mut args = vol_args_v2(name)?;
    args.fd = i64::from(source.as_raw_fd());
    args.flags = SUBVOL_QGROUP_INHERIT;
    if matches!(access, Access::ReadOnly) {
        args.flags |= SUBVOL_RDONLY;
    }
    args.size = size_of::<Inherit>() as u64;
    args.inherit = &inherit;
    // SAFETY: `args` and the `inherit` it points to outlive the call; `size` is its true size.
    done(unsafe { raw::snap_create_v2(directory.as_raw_fd(), &*args) }).map(drop)
}

/// Removes subvolume or snapshot `name` of `directory`; its space comes back a little later.
pub fn subvolume_destroy(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let args = vol_args_v2(name)?;
    // SAFETY: `args` is a whole `btrfs_ioctl_vol_args_v2` and outlives the call.
    done(unsafe { raw::snap_destroy_v2(directory.as_raw_fd(), &*args) }).map(drop)
}

/// The id of the subvolume that holds `file`.
pub fn subvolume_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut args =
        Box::new(InoLookupArgs { treeid: 0, objectid: ROOT_DIR_OBJECT, name: [0; 4080] });
    // SAFETY: `args` is a whole `btrfs_ioctl_ino_lookup_args` and outlives the call.
    done(unsafe { raw::ino_lookup(file.as_raw_fd(), &mut *args) })?;
    Ok(args.treeid)
}

pub fn fsid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut args =
        Box::new(FsInfoArgs { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 992] });
    // SAFETY: `args` is a whole `btrfs_ioctl_fs_info_args` and outlives the call.
    done(unsafe { raw::fs_info(file.as_raw_fd(), &mut *args) })?;
    Ok(args.fsid)
}

/// Lets the file system fill its device.
pub fn resize_to_device(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = Box::new(VolArgs { fd: 0, name: [0; NAME_MAX_V1 + 1] });
    args.name[..5].copy_from_slice(b"1:max");
    // SAFETY: `args` is a whole `btrfs_ioctl_vol_args` and outlives the call.
    done(unsafe { raw::resize(file.as_raw_fd(), &*args) }).map(drop)
}

/// Commits: what was written is on the device, and the usage figures are current.
pub fn sync(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    done(unsafe { raw::sync(file.as_raw_fd()) }).map(drop)
}

/// Full qgroups: with simple ones a clone starts at zero and could exceed its limit.
pub fn quota_enable(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = QuotaCtlArgs { cmd: QUOTA_ENABLE, status: 0 };
    // SAFETY: `args` is a whole `btrfs_ioctl_quota_ctl_args` and outlives the call.
    done(unsafe { raw::quota_ctl(file.as_raw_fd(), &mut args) })?;
    // SAFETY: the request takes no argument.
    done(unsafe { raw::quota_rescan_wait(file.as_raw_fd()) }).map(drop)
}

pub fn qgroup_create(file: BorrowedFd<'_>, qgroupid: u64) -> io::Result<()> {
    qgroup_exists(file, qgroupid, 1)
}

pub fn qgroup_remove(file: BorrowedFd<'_>, qgroupid: u64) -> io::Result<()> {
    qgroup_exists(file, qgroupid, 0)
}

fn qgroup_exists(file: BorrowedFd<'_>, qgroupid: u64, create: u64) -> io::Result<()> {
    let args = QgroupCreateArgs { create, qgroupid };
    // SAFETY: `args` is a whole `btrfs_ioctl_qgroup_create_args` and outlives the call.
    done(unsafe { raw::qgroup_create(file.as_raw_fd(), &args) }).map(drop)
}

/// Limits what `qgroupid` may reference; id 0 is the qgroup of the subvolume that holds `file`.
pub fn qgroup_limit(file: BorrowedFd<'_>, qgroupid: u64, bytes: u64) -> io::Result<()> {
    let limit = QgroupLimit {
        flags: QGROUP_LIMIT_MAX_REFERENCED,
        max_referenced: bytes,
        ..QgroupLimit::default()
    };
    let args = QgroupLimitArgs { qgroupid, limit };
    // SAFETY: `args` is a whole `btrfs_ioctl_qgroup_limit_args` and outlives the call.
    done(unsafe { raw::qgroup_limit(file.as_raw_fd(), &args) }).map(drop)
}
