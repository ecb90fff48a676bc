//! Header fields that are about one connection and not about the message (RFC 9110 section 7.6.1).

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::engine::detect::Protocol;

/// Fields of a connection that `Connection` need not name.
const OF_CONNECTION: [HeaderName; 3] =
    [header::CONNECTION, HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];

/// Fields that `Connection` cannot take away: the message would be another one.
const OF_MESSAGE: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Removes from a request what was for the engine, and says whether the caller asks for an upgrade.
///
/// `Transfer-Encoding` stays: the next hop has the same version of HTTP, and the body keeps its form.
pub(crate) fn clean_request(headers: &mut HeaderMap, protocol: Protocol) -> bool {
    // HTTP/2 has no such fields (RFC 9113 section 8.2.2), and its library refuses them.
    if protocol == Protocol::Http2 {
        return false;
    }
    let upgrade = named(headers, "upgrade") && headers.get(header::UPGRADE).is_some_and(|value| !is_h2c(value));
    let trailers = headers.get_all(header::TE).iter().any(|value| has_token(value, "trailers"));
    let kept = upgrade.then(|| headers.get(header::UPGRADE).cloned()).flatten();
    remove_hop_by_hop(headers);
    headers.remove(header::UPGRADE);
    headers.remove(header::TE);
    let mut options = Vec::new();
    if let Some(protocols) = kept {
        headers.insert(header::UPGRADE, protocols);
        options.push("upgrade");
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        options.push("te");
    }
    if let Ok(options) = HeaderValue::try_from(options.join(", "))
        && !options.is_empty()
    {
        headers.insert(header::CONNECTION, options);
    }
    upgrade
}

/// Removes from a response what was for the engine. An app that closes its connection wants the caller to go elsewhere, so
/// this is passed on; what a handler does with its connections is not the caller's concern.
pub(crate) fn clean_response<B>(response: &mut Response<B>, protocol: Protocol, is_from_app: bool) {
    if protocol == Protocol::Http2 {
        return;
    }
    let status = response.status();
    let headers = response.headers_mut();
    let closes = is_from_app && named(headers, "close");
    let offers = matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED);
    let upgrade = headers.remove(header::UPGRADE).filter(|_| offers);
    remove_hop_by_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if closes {
        close(headers);
    }
}

/// Makes a response the last one of its connection.
pub(crate) fn close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !OF_MESSAGE.contains(name))
        .collect();
    for name in named.iter().chain(&OF_CONNECTION) {
        headers.remove(name);
    }
}

fn named(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| has_token(value, option))
}

fn is_h2c(value: &HeaderValue) -> bool {
    has_token(value, "h2c")
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn what_is_for_one_connection_is_not_passed_on() {
        let mut request = headers(&[
            ("connection", "keep-alive, X-Hop, host"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("x-hop", "1"),
            ("host", "web"),
            ("expect", "100-continue"),
            ("transfer-encoding", "chunked"),
        ]);
        assert!(!clean_request(&mut request, Protocol::Http1));
        let kept = [("host", "web"), ("expect", "100-continue"), ("transfer-encoding", "chunked")];
        assert_eq!(request, headers(&kept));
    }

    #[test]
    fn an_upgrade_and_the_wish_for_trailers_are_made_again() {
        let mut request = headers(&[("connection", "Upgrade, TE"), ("upgrade", "websocket"), ("te", "trailers, gzip")]);
        assert!(clean_request(&mut request, Protocol::Http1));
        assert_eq!(request, headers(&[("upgrade", "websocket"), ("te", "trailers"), ("connection", "upgrade, te")]));
    }

    #[test]
    fn a_change_to_http2_within_a_connection_is_not_asked_for() {
        let mut request =
            headers(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")]);
        assert!(!clean_request(&mut request, Protocol::Http1));
        assert!(request.is_empty());
    }

    #[test]
    fn only_the_app_closes_the_callers_connection() {
        for (is_from_app, closes) in [(true, true), (false, false)] {
            let mut response = Response::new(());
            *response.headers_mut() = headers(&[("connection", "close"), ("keep-alive", "timeout=5"), ("x", "1")]);
            clean_response(&mut response, Protocol::Http1, is_from_app);
            assert_eq!(response.headers().contains_key("connection"), closes);
            assert!(!response.headers().contains_key("keep-alive") && response.headers().contains_key("x"));
        }
    }
}
