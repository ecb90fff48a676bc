//! How the manager is asked to ping an address: `POST https://tp-manager/tp.v1/echo/ADDRESS`.
//!
//! The body is the data of an ICMP echo request (RFC 792; RFC 4443 section 4.1), and that of the answer the data of the
//! reply. Any status but 200 comes with `tp-error` and `tp-message`, as with an open ([`crate::open`]). A manager without
//! the feature `echo` answers 404.

use std::net::IpAddr;

use http::Uri;

/// Path of the request, without the address.
pub const PATH: &str = "/tp.v1/echo/";

/// Media type of both bodies.
pub const MEDIA_TYPE: &str = "application/octet-stream";

/// Returns the target of the request that pings `dst`.
///
/// # Panics
/// Never: the text of an address is a valid path segment (RFC 3986 section 3.3).
pub fn to_uri(dst: IpAddr) -> Uri {
    let uri = Uri::builder().scheme("https").authority("tp-manager").path_and_query(format!("{PATH}{dst}"));
    uri.build().expect("an address is a valid path segment")
}

/// Reads the address from the path of a request; `None` when it is another request.
pub fn parse_path(path: &str) -> Option<IpAddr> {
    path.strip_prefix(PATH)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive_the_wire() {
        for (text, path) in [("10.0.0.1", "/tp.v1/echo/10.0.0.1"), ("fd00::1", "/tp.v1/echo/fd00::1")] {
            let dst: IpAddr = text.parse().unwrap();
            assert_eq!(to_uri(dst).path(), path);
            assert_eq!(parse_path(path), Some(dst));
        }
    }

    #[test]
    fn what_is_not_an_address_is_not_pinged() {
        for path in
            ["/tp.v1/echo/", "/tp.v1/echo/web", "/tp.v1/echo/10.0.0.1/", "/tp.v1/echo/10.0.0.1:80", "/dns-query"]
        {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }
}
