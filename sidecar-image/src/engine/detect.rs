//! Whether bytes are HTTP (pure).

use super::limits::SNIFF_BYTES;

/// What the caller of a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.3).
    Http2,
    /// Anything else, TLS included.
    Opaque,
}

/// How every HTTP/2 connection begins (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for one.
const METHOD_BYTES: usize = 32;

/// Tells the protocol by the first bytes of a connection, or `None` when there are too few of them.
pub(crate) fn sniff(bytes: &[u8]) -> Option<Protocol> {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Some(Protocol::Http2);
    }
    let opaque_when = |enough: bool| enough.then_some(Protocol::Opaque);
    if HTTP2_PREFACE.starts_with(bytes) {
        return None;
    }
    // Empty lines before a request are to be ignored (RFC 9112 section 2.2).
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(line) = start.map(|start| &bytes[start..]) else {
        return opaque_when(bytes.len() >= SNIFF_BYTES);
    };
    let method = line.iter().take(METHOD_BYTES + 1).take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-');
    let method = &line[..method.count()];
    match line.get(method.len()..method.len() + 2) {
        _ if method.len() > METHOD_BYTES => Some(Protocol::Opaque),
        Some([b' ', target]) if !method.is_empty() => {
            Some(if begins_target(method, *target) { Protocol::Http1 } else { Protocol::Opaque })
        }
        Some(_) => Some(Protocol::Opaque),
        // One byte behind the method, or none.
        None => opaque_when(line.get(method.len()).is_some_and(|byte| *byte != b' ' || method.is_empty())),
    }
}

/// Origin form, asterisk form, absolute form, and authority form for CONNECT (RFC 9112 section 3.2).
fn begins_target(method: &[u8], byte: u8) -> bool {
    matches!(byte, b'/' | b'*' | b'h' | b'H') || method == b"CONNECT" && (byte.is_ascii_alphanumeric() || byte == b'[')
}

/// Whether a server's first bytes are those of HTTP/2, whose server may speak before it has read the preface: a SETTINGS
/// frame (type 4) of stream 0. `None` when there are too few of them.
pub(crate) fn is_http2_server(bytes: &[u8]) -> Option<bool> {
    let fixed = [(0, 0), (3, 4), (5, 0), (6, 0), (7, 0), (8, 0)];
    if fixed.iter().any(|(at, expected)| bytes.get(*at).is_some_and(|byte| byte != expected)) {
        return Some(false);
    }
    (bytes.len() >= 9).then_some(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CASES: [(&[u8], Option<Protocol>); 17] = [
        (b"", None),
        (b"GET", None),
        (b"GET ", None),
        (b"GET /", Some(Protocol::Http1)),
        (b"\r\nGET /", Some(Protocol::Http1)),
        (b"OPTIONS * HTTP/1.1", Some(Protocol::Http1)),
        (b"M-SEARCH * HTTP/1.1", Some(Protocol::Http1)),
        (b"CONNECT db.shop:5432 HTTP/1.1", Some(Protocol::Http1)),
        (b"POST http://web/ HTTP/1.1", Some(Protocol::Http1)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", None),
        (HTTP2_PREFACE, Some(Protocol::Http2)),
        (b"\x16\x03\x01\x02\x00\x01", Some(Protocol::Opaque)),
        (b"PING\r\n", Some(Protocol::Opaque)),
        (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
        (b"EHLO shop.example\r\n", Some(Protocol::Opaque)),
        (b"CONNECT {\"verbose\":false}\r\n", Some(Protocol::Opaque)),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Protocol::Opaque)),
    ];

    #[test]
    fn requests_are_told_from_other_protocols() {
        for (bytes, expected) in CASES {
            assert_eq!(sniff(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_http2_server_speaks_first_without_being_another_protocol() {
        let settings = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03";
        assert_eq!(is_http2_server(settings), Some(true));
        assert_eq!(is_http2_server(&settings[..8]), None);
        assert_eq!(is_http2_server(b"220 mail.shop.example ESMTP\r\n"), Some(false));
    }

    proptest! {
        #[test]
        fn a_decision_does_not_depend_on_how_the_bytes_are_cut(
            case in proptest::sample::select(CASES.to_vec()), noise in proptest::collection::vec(any::<u8>(), 0..SNIFF_BYTES),
        ) {
            for bytes in [case.0, &noise] {
                let first = (0..=bytes.len()).find_map(|len| sniff(&bytes[..len]));
                prop_assert_eq!(first, sniff(bytes));
            }
        }

        #[test]
        fn enough_bytes_are_always_decided(noise in proptest::collection::vec(any::<u8>(), SNIFF_BYTES)) {
            prop_assert!(sniff(&noise).is_some());
        }
    }
}
