//! How the daemon container reaches an API server that the kubeconfig names by this machine's own address.
//!
//! A cluster in a container (kind, k3d, minikube) publishes its port on the loopback interface, which is another one
//! inside the daemon's container: there the container itself is the address, on the Docker network that both are on.
//! Anything else that listens on this machine is reached through the host gateway.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bollard::models::{ContainerSummary, PortSummaryTypeEnum};

use super::Engine;
use super::connections::first_name;
use crate::attach::KubeAccess;
use crate::error::{CliError, Result};

/// The name by which containers know the engine's host.
pub(crate) const HOST_GATEWAY: &str = "host.docker.internal";
/// The network that every daemon container is on.
const DEFAULT_NETWORK: &str = "bridge";
/// How long the look-up of the server's name may take; when it takes longer, the name is left alone.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// What the daemon container needs besides the rewritten address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Networks to join.
    pub(crate) networks: Vec<String>,
    /// `HOST:IP` lines for `/etc/hosts`.
    pub(crate) extra_hosts: Vec<String>,
}

/// A container of the engine, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Neighbour {
    name: String,
    /// Published TCP ports: on the host, in the container.
    ports: Vec<(u16, u16)>,
    /// Networks with the container's addresses there.
    networks: Vec<(String, Vec<IpAddr>)>,
}

impl Engine {
    /// Rewrites the server's address in `access` to one that works in a container of this engine.
    ///
    /// # Errors
    /// When the engine does not list its containers.
    pub(crate) async fn reach(&self, access: &mut KubeAccess) -> Result<Reach> {
        if !access.proxy_url.is_empty() {
            // The proxy looks the server up, not the daemon.
            let Some((url, reach)) = through_gateway(&access.proxy_url, &addresses_of(&access.proxy_url).await) else {
                return Ok(Reach::default());
            };
            access.proxy_url = url;
            return Ok(reach);
        }
        let addresses = addresses_of(&access.server).await;
        if addresses.is_empty() {
            return Ok(Reach::default());
        }
        let neighbours: Vec<_> = self.running().await?.into_iter().map(Neighbour::from).collect();
        let reach = place(access, &addresses, &neighbours);
        if !reach.extra_hosts.is_empty() && !self.endpoint().address.is_local() {
            return Err(CliError::user(format!(
                "the API server {} is on this machine, and the container engine at {} is on another",
                access.original_server,
                self.endpoint().address
            ))
            .hint("use an engine on this machine, or a kubeconfig with an address that both machines reach"));
        }
        Ok(reach)
    }
}

/// The addresses of a URL's host; none when it has none that this machine knows.
async fn addresses_of(url: &str) -> Vec<IpAddr> {
    let Some((host, port)) = host_and_port(url) else { return Vec::new() };
    if let Ok(ip) = host.parse() {
        return vec![ip];
    }
    match tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host((host.as_str(), port))).await {
        Ok(Ok(found)) => found.map(|address: SocketAddr| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// Host (without brackets) and port of a URL.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let uri: http::Uri = url.parse().ok()?;
    let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
    Some((uri.host()?.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(default)))
}

/// An address that means "this machine". `0.0.0.0` is what k3d writes into kubeconfigs.
fn is_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

fn place(access: &mut KubeAccess, addresses: &[IpAddr], neighbours: &[Neighbour]) -> Reach {
    let Some((host, port)) = host_and_port(&access.server) else { return Reach::default() };
    if !addresses.iter().copied().any(is_this_machine) {
        // A container's own address works from its network only: bridges are kept apart.
        let here =
            neighbours.iter().flat_map(|n| &n.networks).find(|(_, ips)| ips.iter().any(|ip| addresses.contains(ip)));
        let networks = here.filter(|(network, _)| joinable(network)).map(|(network, _)| network.clone());
        return Reach { networks: networks.into_iter().collect(), ..Reach::default() };
    }
    let publisher = neighbours.iter().find_map(|neighbour| {
        let (_, inside) = neighbour.ports.iter().find(|(outside, _)| *outside == port)?;
        let with_address = |(network, ips): &(String, Vec<IpAddr>)| Some((network.clone(), *ips.first()?));
        // The default network needs no joining, so it comes last: a user-defined one says whose cluster it is.
        let named = neighbour.networks.iter().filter(|(network, _)| joinable(network)).find_map(with_address);
        let (network, ip) = named.or_else(|| neighbour.networks.iter().find_map(with_address))?;
        Some((network, SocketAddr::new(ip, *inside)))
    });
    keep_server_name(access, &host);
    match publisher {
        Some((network, address)) => {
            access.server = with_authority(&access.server, &address.to_string());
            let networks = if joinable(&network) { vec![network] } else { Vec::new() };
            Reach { networks, ..Reach::default() }
        }
        None => {
            let (url, reach) = through_gateway(&access.server, addresses).expect("one address is this machine's");
            access.server = url;
            reach
        }
    }
}

/// The URL through the host gateway, if it points at this machine.
fn through_gateway(url: &str, addresses: &[IpAddr]) -> Option<(String, Reach)> {
    let (_, port) = host_and_port(url).filter(|_| addresses.iter().copied().any(is_this_machine))?;
    let url = with_authority(url, &format!("{HOST_GATEWAY}:{port}"));
    Some((url, Reach { extra_hosts: vec![format!("{HOST_GATEWAY}:host-gateway")], ..Reach::default() }))
}

/// The server's certificate is made out to the name in the kubeconfig, whatever address is dialled.
fn keep_server_name(access: &mut KubeAccess, host: &str) {
    if access.tls_server_name.is_empty() && access.server.starts_with("https:") {
        host.clone_into(&mut access.tls_server_name);
    }
}

/// `url` with another host and port.
fn with_authority(url: &str, authority: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let path = rest.find('/').map_or("", |at| &rest[at..]);
    let login = rest[..rest.len() - path.len()].rsplit_once('@').map(|(login, _)| format!("{login}@"));
    format!("{scheme}://{}{authority}{path}", login.unwrap_or_default())
}

/// Whether a container can be connected to the network, and is not on it anyway.
fn joinable(network: &str) -> bool {
    !matches!(network, DEFAULT_NETWORK | "host" | "none")
}

impl From<ContainerSummary> for Neighbour {
    fn from(summary: ContainerSummary) -> Self {
        let tcp = |typ: Option<PortSummaryTypeEnum>| typ.is_none_or(|typ| typ == PortSummaryTypeEnum::TCP);
        let ports = summary.ports.iter().flatten();
        let ports = ports.filter(|port| tcp(port.typ)).filter_map(|port| Some((port.public_port?, port.private_port)));
        let networks = summary.network_settings.iter().flat_map(|settings| settings.networks.iter().flatten());
        let mut networks: Vec<_> = networks
            .map(|(name, endpoint)| {
                let addresses = [&endpoint.ip_address, &endpoint.global_ipv6_address];
                let ips = addresses.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
                (name.clone(), ips)
            })
            .collect();
        networks.sort();
        Self { name: first_name(&summary), ports: ports.collect(), networks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(server: &str) -> KubeAccess {
        KubeAccess { server: server.into(), original_server: server.into(), ..KubeAccess::default() }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn kind() -> Neighbour {
        Neighbour {
            name: "kind-control-plane".into(),
            ports: vec![(40123, 6443)],
            networks: vec![("bridge".into(), ips(&["172.17.0.9"])), ("kind".into(), ips(&["172.18.0.2", "fc00::2"]))],
        }
    }

    #[test]
    fn cluster_in_a_container_is_reached_on_its_network() {
        for (server, name) in [
            ("https://127.0.0.1:40123", "127.0.0.1"),
            ("https://localhost:40123/x", "localhost"),
            ("https://[::1]:40123", "::1"),
        ] {
            let mut access = access(server);
            let reach = place(&mut access, &ips(&["127.0.0.1"]), &[Neighbour::default(), kind()]);
            assert_eq!(reach.networks, ["kind"]);
            assert!(access.server.starts_with("https://172.18.0.2:6443"), "{}", access.server);
            assert_eq!(access.tls_server_name, name);
        }
    }

    #[test]
    fn server_name_of_the_kubeconfig_is_kept() {
        let mut access = KubeAccess { tls_server_name: "k8s".into(), ..access("https://0.0.0.0:40123") };
        place(&mut access, &ips(&["0.0.0.0"]), &[kind()]);
        assert_eq!(access.tls_server_name, "k8s");
        let mut plain = self::access("http://127.0.0.1:40123");
        place(&mut plain, &ips(&["127.0.0.1"]), &[kind()]);
        assert_eq!((plain.server.as_str(), plain.tls_server_name.as_str()), ("http://172.18.0.2:6443", ""));
    }

    #[test]
    fn cluster_on_the_default_network_needs_no_joining() {
        let node = Neighbour {
            ports: vec![(6443, 6443)],
            networks: vec![("bridge".into(), ips(&["172.17.0.3"]))],
            ..Neighbour::default()
        };
        let mut access = access("https://127.0.0.1:6443");
        assert_eq!(place(&mut access, &ips(&["127.0.0.1"]), &[node]), Reach::default());
        assert_eq!(access.server, "https://172.17.0.3:6443");
    }

    #[test]
    fn whatever_else_listens_here_is_reached_through_the_gateway() {
        let mut access = access("https://127.0.0.1:6443");
        let reach = place(&mut access, &ips(&["127.0.0.1"]), &[kind()]);
        assert_eq!(reach.extra_hosts, ["host.docker.internal:host-gateway"]);
        assert_eq!(access.server, "https://host.docker.internal:6443");
        assert_eq!(access.tls_server_name, "127.0.0.1");
    }

    #[test]
    fn address_of_a_container_is_reached_on_its_network() {
        let mut at_container = access("https://172.18.0.2:6443");
        assert_eq!(place(&mut at_container, &ips(&["172.18.0.2"]), &[kind()]).networks, ["kind"]);
        assert_eq!(at_container, access("https://172.18.0.2:6443"));
        let mut elsewhere = access("https://10.0.0.1:6443");
        assert_eq!(place(&mut elsewhere, &ips(&["10.0.0.1"]), &[kind()]), Reach::default());
        assert_eq!(elsewhere, access("https://10.0.0.1:6443"));
    }

    #[test]
    fn authority_is_replaced_and_nothing_else() {
        assert_eq!(with_authority("https://a:1/b/c", "d:2"), "https://d:2/b/c");
        assert_eq!(with_authority("http://u:p@a", "d:2"), "http://u:p@d:2");
        assert_eq!(with_authority("https://[::1]:6443", "[::2]:1"), "https://[::2]:1");
    }
}
