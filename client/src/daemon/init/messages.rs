//! Messages between the init and the daemon, over a socket pair, framed by [`tp_protocol::frame`].
//!
//! Both ends are the same binary. The init speaks first, with [`Restore`]; then it answers each request.

/// Largest message: a kubeconfig's certificates and a cluster's subnets fit many times.
pub(crate) const MAX_INIT_BYTES: usize = 4 << 20;

/// From the daemon.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct ToInit {
    #[prost(oneof = "to_init::Kind", tags = "1, 2")]
    pub(crate) kind: Option<to_init::Kind>,
}

/// The kinds of [`ToInit`].
pub(crate) mod to_init {
    /// One request.
    #[derive(Clone, PartialEq, prost::Oneof)]
    #[prost(skip_debug)]
    pub(crate) enum Kind {
        /// Set the network up and give up every right. Once.
        #[prost(message, tag = "1")]
        Configure(super::NetworkConfig),
        /// Remember this for the next daemon process.
        #[prost(bytes, tag = "2")]
        SaveState(Vec<u8>),
    }
}

/// From the init.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct FromInit {
    #[prost(oneof = "from_init::Kind", tags = "1, 2, 3")]
    pub(crate) kind: Option<from_init::Kind>,
}

/// The kinds of [`FromInit`].
pub(crate) mod from_init {
    /// One message.
    #[derive(Clone, PartialEq, prost::Oneof)]
    #[prost(skip_debug)]
    pub(crate) enum Kind {
        /// The first message to every daemon process.
        #[prost(message, tag = "1")]
        Restore(super::Restore),
        /// The request was carried out.
        #[prost(message, tag = "2")]
        Done(super::Empty),
        /// The request failed, for this reason.
        #[prost(string, tag = "3")]
        Failed(String),
    }
}

/// A message without content.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// What a daemon process starts with.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct Restore {
    /// What the process before this one asked to remember.
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(crate) state: Option<Vec<u8>>,
    /// resolv.conf as the engine made it.
    #[prost(string, tag = "2")]
    pub(crate) original_resolv_conf: String,
    /// Daemon processes that died before this one.
    #[prost(uint32, tag = "3")]
    pub(crate) restarts: u32,
}

/// What the container's network looks like.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NetworkConfig {
    /// Addresses of the TUN, with their prefix lengths.
    #[prost(string, repeated, tag = "1")]
    pub(crate) addresses: Vec<String>,
    /// Subnets routed into the TUN, CIDR.
    #[prost(string, repeated, tag = "2")]
    pub(crate) routes: Vec<String>,
    /// Subnets that keep going out as before, CIDR.
    #[prost(string, repeated, tag = "3")]
    pub(crate) exclude: Vec<String>,
    /// Address of the resolver.
    #[prost(string, tag = "4")]
    pub(crate) nameserver: String,
    /// Search list.
    #[prost(string, repeated, tag = "5")]
    pub(crate) search: Vec<String>,
    /// Names with fewer dots are tried with the search list first.
    #[prost(uint32, tag = "6")]
    pub(crate) ndots: u32,
}
