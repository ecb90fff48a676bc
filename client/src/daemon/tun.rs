//! The TUN device: packets of the container's namespace, as super-packets with a virtio-net header.
//!
//! Source of the interface: kernel documentation `networking/tuntap.rst` and `include/uapi/linux/if_tun.h`.
#![expect(unsafe_code, reason = "ioctl on the TUN device, and tokio cannot see that it keeps its descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tp_netstack::Offload;

/// Name of the device in the container.
pub(crate) const TUN_NAME: &str = "tp0";

/// Largest IP packet, so that datagrams of every size pass whole and one read takes many segments.
pub(crate) const TUN_MTU: u16 = 65_535;

const TUN_DEVICE: &str = "/dev/net/tun";

/// Bytes of `struct virtio_net_hdr`, without the count of merged buffers.
const VNET_HEADER_BYTES: libc::c_int = 10;

/// The process's end of a TUN device.
#[derive(Debug)]
pub(crate) struct Tun {
    fd: OwnedFd,
    offload: Offload,
}

impl Tun {
    /// Creates the device and leaves it down. Needs `CAP_NET_ADMIN`. It lives as long as a descriptor of it is open.
    ///
    /// Asks for large TCP packets in both directions and for unfinished checksums; a kernel that offers less gets plain
    /// packets.
    ///
    /// # Errors
    /// When the device file is absent or may not be opened, or `tp0` exists.
    pub(crate) fn create() -> io::Result<Self> {
        let open = || rustix::fs::open(TUN_DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        let fd = open()?;
        if set_interface(fd.as_fd(), libc::IFF_VNET_HDR).and_then(|()| set_offload(fd.as_fd())).is_ok() {
            return Ok(Self { fd, offload: Offload::VirtioNet });
        }
        drop(fd);
        let fd = open()?;
        set_interface(fd.as_fd(), 0)?;
        Ok(Self { fd, offload: Offload::Disabled { mtu: TUN_MTU } })
    }

    /// Takes over a device that another process created.
    ///
    /// # Errors
    /// When `fd` is not a TUN device.
    pub(crate) fn inherit(fd: OwnedFd) -> io::Result<Self> {
        let mut request = interface_request();
        // SAFETY: TUNGETIFF writes one `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
        // SAFETY: TUNGETIFF sets the flags member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let offload =
            if flags & libc::IFF_VNET_HDR == 0 { Offload::Disabled { mtu: TUN_MTU } } else { Offload::VirtioNet };
        Ok(Self { fd, offload })
    }

    /// One end of a pair of sockets that keep packets apart.
    #[cfg(test)]
    pub(crate) fn of_a_pair(fd: OwnedFd) -> Self {
        Self { fd, offload: Offload::Disabled { mtu: TUN_MTU } }
    }

    /// Puts the device under tokio's eye.
    ///
    /// # Errors
    /// When the runtime has no room for it.
    pub(crate) fn register(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: a `Tun` owns its descriptor for as long as it lives, and never replaces it.
        Ok(unsafe { AsyncFd::register(self) }?)
    }

    /// What the device was opened with.
    pub(crate) fn offload(&self) -> Offload {
        self.offload
    }

    /// Reads one packet, virtio-net header first when there is one.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub(crate) fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, packet)?)
    }

    /// Writes one packet, virtio-net header first when there is one.
    ///
    /// # Errors
    /// `WouldBlock` when the device takes none; `EINVAL` for a packet that the kernel does not understand.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.fd, packet)?)
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn interface_request() -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TUN_NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn set_interface(fd: BorrowedFd<'_>, extra_flags: libc::c_int) -> io::Result<()> {
    let mut request = interface_request();
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | extra_flags) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
}

fn set_offload(fd: BorrowedFd<'_>) -> io::Result<()> {
    let header_bytes = VNET_HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header_bytes) })?;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offload)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
