//! The proxy that the environment asks for, by the rules of Go's `golang.org/x/net/http/httpproxy`, which kubectl follows.

use std::net::IpAddr;

use ipnet::IpNet;

/// The proxy for `server` from `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` (or in lower case); `None`: go there directly.
pub(crate) fn from_env(server: &str, var: impl Fn(&str) -> Option<String>) -> Option<String> {
    let var = |name: &str| {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        set(name).or_else(|| set(&name.to_lowercase()))
    };
    let url: http::Uri = server.parse().ok()?;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_lowercase();
    let https = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
    let proxy = var(if https { "HTTPS_PROXY" } else { "HTTP_PROXY" })?;
    if is_local(&host) || var("NO_PROXY").is_some_and(|list| list.split(',').any(|rule| excludes(rule, &host, port))) {
        return None;
    }
    Some(if proxy.contains("://") { proxy } else { format!("http://{proxy}") })
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether one rule of `NO_PROXY` covers `host` and `port`.
fn excludes(rule: &str, host: &str, port: u16) -> bool {
    let rule = rule.trim().to_lowercase();
    if rule.is_empty() {
        return false;
    }
    if rule == "*" {
        return true;
    }
    let ip = host.parse::<IpAddr>().ok();
    if let Ok(net) = rule.parse::<IpNet>() {
        return ip.is_some_and(|ip| net.contains(&ip));
    }
    if let Ok(only) = rule.parse::<IpAddr>() {
        return ip == Some(only);
    }
    let (name, only_port) = match rule.rsplit_once(':') {
        Some((name, digits)) if digits.parse::<u16>().is_ok() => (name, digits.parse::<u16>().ok()),
        _ => (rule.as_str(), None),
    };
    if only_port.is_some_and(|only| only != port) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']').trim_start_matches('*');
    if let Ok(only) = name.parse::<IpAddr>() {
        return ip == Some(only);
    }
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(server: &str, no_proxy: &str) -> Option<String> {
        from_env(server, |name| match name {
            "HTTPS_PROXY" => Some("http://p:3128".to_owned()),
            "http_proxy" => Some("p:80".to_owned()),
            "no_proxy" => Some(no_proxy.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn scheme_picks_the_variable() {
        assert_eq!(proxy("https://k.example.com", "").as_deref(), Some("http://p:3128"));
        assert_eq!(proxy("http://k.example.com", "").as_deref(), Some("http://p:80"));
    }

    #[test]
    fn this_machine_is_never_proxied() {
        for server in ["https://127.0.0.1:6443", "https://localhost:1", "https://[::1]:6443"] {
            assert_eq!(proxy(server, ""), None, "{server}");
        }
    }

    #[test]
    fn no_proxy_rules_cover_names_addresses_and_ports() {
        for rules in ["*", "example.com", ".example.com", "*.example.com", "k.example.com:443", "x, K.EXAMPLE.com"] {
            assert_eq!(proxy("https://k.example.com", rules), None, "{rules}");
        }
        for rules in ["ample.com", "k.example.com:6443", "10.0.0.0/8", "other"] {
            assert!(proxy("https://k.example.com", rules).is_some(), "{rules}");
        }
        for rules in ["10.0.0.0/8", "10.1.2.3", "10.1.2.3:6443", "fd00::/8,10.1.0.0/16"] {
            assert_eq!(proxy("https://10.1.2.3:6443", rules), None, "{rules}");
        }
        assert!(proxy("https://example.com", ".example.com").is_some());
    }
}
