//! The head of a request or of an answer, line by line: the target, then headers as `NAME: VALUE`.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tp_protocol::echo;
use tp_protocol::engage::dial::Dial;
use tp_protocol::open::{Open, OpenRefused, Transport};

pub(crate) fn run(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let target = lines.next().and_then(|line| Uri::try_from(line).ok());
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.insert(name, value);
        }
    }
    if let Some(refused) = OpenRefused::from_headers(&headers) {
        let mut again = HeaderMap::new();
        refused.write_headers(&mut again);
        let again = OpenRefused::from_headers(&again).expect("an error was written");
        assert_eq!((again.class, again.status()), (refused.class, refused.status()));
    }
    if let Ok(dial) = Dial::from_headers(&headers) {
        let mut again = HeaderMap::new();
        dial.write_headers(&mut again);
        assert_eq!(Dial::from_headers(&again), Ok(dial));
    }
    let Some(target) = target else { return };
    if let Some(dst) = echo::parse_path(target.path()) {
        assert_eq!(echo::parse_path(echo::to_uri(dst).path()), Some(dst));
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    if let Ok(open) = Open::from_parts(&request.into_parts().0) {
        let again = open.to_request().unwrap_or_else(|error| panic!("{open:?} cannot be written: {error}"));
        assert_eq!(again.uri().path().is_empty(), open.transport == Transport::Tcp);
        assert_eq!(Open::from_parts(&again.into_parts().0), Ok(open));
    }
}
