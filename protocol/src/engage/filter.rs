//! Which requests an engagement is about.
//!
//! | kind | rules of one kind | written |
//! |---|---|---|
//! | header | all must match | `NAME=VALUE`, `NAME=~REGEX` |
//! | member of `baggage` or `tracestate` | all must match | `baggage:KEY=VALUE`, `tracestate:KEY=~REGEX` |
//! | method | one must match | `GET` |
//! | path | one must match | equal, prefix, regex, or a gRPC service or method |
//!
//! All kinds that have a rule must match. So several headers narrow a filter, as each more says more about the caller, and
//! several methods or paths widen it, as a request has only one of each. A filter without any rule matches every request.
//!
//! Everything a rule looks at has one value per request, so two rules that want different values can never both match
//! ([`super::overlap`] relies on it):
//!
//! * A header that has several lines counts as one, joined by `, ` (RFC 9110 section 5.3; `cookie` by `; `, RFC 9113
//!   section 8.2.3). A missing header matches nothing. `host` is the `:authority` of an HTTP/2 request that has no `host`.
//! * A member of `baggage` (W3C Baggage) counts without its properties and percent-decoded; one of `tracestate` (W3C Trace
//!   Context) as it is. Where a key is there twice, the first counts.
//! * A path counts as it was sent, without the query. A prefix is one of text: `/api` matches `/apis`, `/api/` does not.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Uri};

use super::pattern::{Pattern, PatternError, WholeRegex};

/// Most rules that one filter can have.
pub const MAX_RULES: usize = 32;

/// Headers whose members can be asked for.
const LISTS: [HeaderName; 2] = [HeaderName::from_static("baggage"), HeaderName::from_static("tracestate")];

/// Requests that match in every kind of rule there is. The default matches all of them.
///
/// Invariant: at most [`MAX_RULES`] rules, no two of which make it impossible to match; methods sorted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    headers: Vec<HeaderRule>,
    methods: Vec<Method>,
    paths: Vec<PathRule>,
}

/// Asks for a header, or a member of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRule {
    /// Where to look.
    pub selector: Selector,
    /// What has to be there.
    pub pattern: Pattern,
}

/// A header, or a member of the list that a header is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    name: HeaderName,
    member: Option<String>,
}

/// Asks for a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRule {
    /// This one.
    Equal(String),
    /// Any that begins with this.
    Prefix(String),
    /// Any that all of the expression matches.
    Regex(WholeRegex),
}

/// What a filter sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target.
    pub uri: &'a Uri,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// Why rules are not a filter. The text is for whoever wrote them.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterError {
    /// No `=` in a header rule.
    #[error("`{0}` has no `=`: write NAME=VALUE, or NAME=~REGEX for a regular expression")]
    NoValue(String),
    /// A header's name is none.
    #[error("`{0}` is not a header's name")]
    BadName(String),
    /// A member of a header that has none.
    #[error("`{0}` asks for a member of a header, which only `baggage:KEY` and `tracestate:KEY` have")]
    BadMember(String),
    /// A method is none.
    #[error("`{0}` is not a method")]
    BadMethod(String),
    /// A path does not begin with a slash.
    #[error("the path `{0}` does not begin with `/`")]
    BadPath(String),
    /// A gRPC name is neither a service nor a service with a method.
    #[error("`{0}` is not a gRPC service (`shop.Cart`) or method (`shop.Cart/Add`)")]
    BadGrpc(String),
    /// A value cannot be asked for.
    #[error("the value of `{rule}` cannot be used: {problem}")]
    BadPattern {
        /// The rule.
        rule: String,
        /// What is wrong.
        problem: PatternError,
    },
    /// More than [`MAX_RULES`] rules.
    #[error("there are {0} rules, and {MAX_RULES} is the limit")]
    TooManyRules(usize),
    /// No request can match.
    #[error(
        "no request can match both `{0}` and `{1}`: a header has one value (`=~` takes several, as in `=~ann|bob`)"
    )]
    Contradiction(String, String),
}

impl Filter {
    /// Puts rules together.
    ///
    /// # Errors
    /// [`FilterError::TooManyRules`] and [`FilterError::Contradiction`].
    pub fn new(headers: Vec<HeaderRule>, mut methods: Vec<Method>, paths: Vec<PathRule>) -> Result<Self, FilterError> {
        let rules = headers.len() + methods.len() + paths.len();
        if rules > MAX_RULES {
            return Err(FilterError::TooManyRules(rules));
        }
        for (index, a) in headers.iter().enumerate() {
            if let Some(b) = headers[..index].iter().find(|b| b.is_disjoint(a)) {
                return Err(FilterError::Contradiction(b.to_string(), a.to_string()));
            }
        }
        methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        methods.dedup();
        Ok(Self { headers, methods, paths })
    }

    /// Rules for headers; all must match.
    pub fn headers(&self) -> &[HeaderRule] {
        &self.headers
    }

    /// Methods of which one must match, or none for any.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// Rules for the path of which one must match, or none for any.
    pub fn paths(&self) -> &[PathRule] {
        &self.paths
    }

    /// Whether it matches everything, also what is not HTTP.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.methods.is_empty() && self.paths.is_empty()
    }

    /// Whether it matches this request.
    pub fn matches(&self, head: Head<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(head.method))
            && (self.paths.is_empty() || self.paths.iter().any(|rule| rule.matches(head.uri.path())))
            && self.headers.iter().all(|rule| rule.matches(head))
    }
}

/// Reads a method, in capitals or not.
///
/// # Errors
/// [`FilterError::BadMethod`].
pub fn parse_method(text: &str) -> Result<Method, FilterError> {
    Method::from_bytes(text.to_ascii_uppercase().as_bytes()).map_err(|_| FilterError::BadMethod(text.into()))
}

impl HeaderRule {
    /// Whether a request has what it asks for.
    pub fn matches(&self, head: Head<'_>) -> bool {
        self.selector.value(head).is_some_and(|value| self.pattern.matches(&value))
    }

    /// Whether certainly no request matches both. Symmetric; `false` says nothing.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.selector == other.selector && self.pattern.is_disjoint(&other.pattern)
    }
}

impl FromStr for HeaderRule {
    type Err = FilterError;

    /// Reads `NAME=VALUE` or `NAME=~REGEX`, where `NAME` can be `baggage:KEY` or `tracestate:KEY`.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (name, value) = text.split_once('=').ok_or_else(|| FilterError::NoValue(text.into()))?;
        let selector = match name.split_once(':') {
            Some((name, member)) => Selector::new(name, Some(member)),
            None => Selector::new(name, None),
        }?;
        let pattern = match value.strip_prefix('~') {
            Some(regex) => Pattern::regex(regex),
            None => Pattern::exact(value),
        };
        let pattern = pattern.map_err(|problem| FilterError::BadPattern { rule: text.into(), problem })?;
        Ok(Self { selector, pattern })
    }
}

impl Selector {
    /// Selects a header, or a member of it.
    ///
    /// # Errors
    /// [`FilterError::BadName`], and [`FilterError::BadMember`] for a header that is no list of members.
    pub fn new(name: &str, member: Option<&str>) -> Result<Self, FilterError> {
        let name = HeaderName::from_str(name.trim()).map_err(|_| FilterError::BadName(name.into()))?;
        let member = member.map(str::trim);
        match member {
            Some(key) if key.is_empty() || key.contains([',', ';', '=', ' ']) || !LISTS.contains(&name) => {
                Err(FilterError::BadMember(format!("{name}:{key}")))
            }
            _ => Ok(Self { name, member: member.map(str::to_owned) }),
        }
    }

    /// The header.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// The key of the member.
    pub fn member(&self) -> Option<&str> {
        self.member.as_deref()
    }

    /// What a request has there.
    pub fn value<'a>(&self, head: Head<'a>) -> Option<Cow<'a, [u8]>> {
        let line = self.line(head)?;
        let Some(key) = &self.member else {
            return Some(line);
        };
        let line: &[u8] = &line;
        let (_, value) = line
            .split(|byte| *byte == b',')
            .filter_map(|entry| {
                let member = entry.split(|byte| *byte == b';').next()?;
                let equals = member.iter().position(|byte| *byte == b'=')?;
                Some((member[..equals].trim_ascii(), member[equals + 1..].trim_ascii()))
            })
            .find(|(name, _)| *name == key.as_bytes())?;
        Some(Cow::Owned(if self.name == "baggage" { percent_decode(value) } else { value.to_vec() }))
    }

    /// All lines of the header as one.
    fn line<'a>(&self, head: Head<'a>) -> Option<Cow<'a, [u8]>> {
        let mut lines = head.headers.get_all(&self.name).iter();
        let Some(first) = lines.next() else {
            let authority = (self.name == header::HOST).then(|| head.uri.authority()).flatten()?;
            return Some(Cow::Borrowed(authority.as_str().as_bytes()));
        };
        let mut line = Cow::Borrowed(first.as_bytes());
        for more in lines {
            let line = line.to_mut();
            line.extend_from_slice(if self.name == header::COOKIE { b"; " } else { b", " });
            line.extend_from_slice(more.as_bytes());
        }
        Some(line)
    }
}

/// Replaces `%XX` by its byte (RFC 3986 section 2.1); what is no such triplet stays.
fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.filter(|hex| !hex.starts_with('+')).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            None => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    decoded
}

impl PathRule {
    /// This path.
    ///
    /// # Errors
    /// [`FilterError::BadPath`], [`FilterError::BadPattern`] when it is too long.
    pub fn equal(path: &str) -> Result<Self, FilterError> {
        Ok(Self::Equal(check_path(path)?))
    }

    /// Paths that begin with this text.
    ///
    /// # Errors
    /// As [`PathRule::equal`].
    pub fn prefix(prefix: &str) -> Result<Self, FilterError> {
        Ok(Self::Prefix(check_path(prefix)?))
    }

    /// Paths that all of the expression matches.
    ///
    /// # Errors
    /// [`FilterError::BadPattern`].
    pub fn regex(source: &str) -> Result<Self, FilterError> {
        match Pattern::regex(source) {
            Ok(Pattern::Regex(regex)) => Ok(Self::Regex(regex)),
            Ok(Pattern::Exact(_)) => unreachable!("Pattern::regex makes a regular expression"),
            Err(problem) => Err(FilterError::BadPattern { rule: source.into(), problem }),
        }
    }

    /// The path of a gRPC service (`shop.Cart`, all of its methods) or method (`shop.Cart/Add`): gRPC over HTTP/2 says
    /// `Path -> "/" Service-Name "/" method`.
    ///
    /// # Errors
    /// [`FilterError::BadGrpc`].
    pub fn grpc(name: &str) -> Result<Self, FilterError> {
        let identifier = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
        };
        let bad = || FilterError::BadGrpc(name.into());
        match name.split_once('/') {
            Some((service, method)) if identifier(service) && identifier(method) => Self::equal(&format!("/{name}")),
            None if identifier(name) => Self::prefix(&format!("/{name}/")),
            _ => Err(bad()),
        }
    }

    /// Whether it is about this path.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Equal(expected) => expected == path,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Regex(regex) => regex.matches(path.as_bytes()),
        }
    }
}

fn check_path(path: &str) -> Result<String, FilterError> {
    if !path.starts_with('/') {
        return Err(FilterError::BadPath(path.into()));
    }
    match Pattern::exact(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(problem) => Err(FilterError::BadPattern { rule: path.into(), problem }),
    }
}

impl<'a, B> From<&'a Request<B>> for Head<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self { method: request.method(), uri: request.uri(), headers: request.headers() }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.member {
            Some(key) => write!(f, "{}:{key}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl fmt::Display for HeaderRule {
    /// As [`HeaderRule::from_str`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.selector, self.pattern)
    }
}

impl fmt::Display for PathRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal(path) => write!(f, "path {path}"),
            Self::Prefix(prefix) => write!(f, "path {prefix}..."),
            Self::Regex(regex) => write!(f, "path =~{}", regex.as_str()),
        }
    }
}

impl fmt::Display for Filter {
    /// For people: `x-user=ann and GET and path /api/...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_of =
            |names: Vec<String>| if names.len() > 1 { format!("({})", names.join(" or ")) } else { names.concat() };
        let methods = one_of(self.methods.iter().map(Method::to_string).collect());
        let paths = one_of(self.paths.iter().map(PathRule::to_string).collect());
        let all: Vec<String> = self.headers.iter().map(HeaderRule::to_string).chain([methods, paths]).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        f.write_str(if all.is_empty() { "every request".into() } else { all.join(" and ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let builder = Request::builder().method(method).uri(uri);
        headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).body(()).unwrap()
    }

    fn header_matches(rule: &str, headers: &[(&str, &str)]) -> bool {
        let filter = Filter::new(vec![rule.parse().unwrap()], vec![], vec![]).unwrap();
        filter.matches(Head::from(&request("GET", "http://shop.example/", headers)))
    }

    #[test]
    fn header_rules_look_at_the_whole_value_of_all_lines() {
        for (rule, headers, expected) in [
            ("x-user=ann", &[("X-User", "ann")][..], true),
            ("X-User=ann", &[("x-user", "ann")], true),
            ("x-user=ann", &[("x-user", "Ann")], false),
            ("x-user=ann", &[("x-user", "anna")], false),
            ("x-user=ann", &[], false),
            ("x-user=", &[("x-user", "")], true),
            ("x-user=a=b", &[("x-user", "a=b")], true),
            ("x-user=~a.*", &[("x-user", "anna")], true),
            ("x-user=ann", &[("x-user", "ann"), ("x-user", "bob")], false),
            ("x-user=ann, bob", &[("x-user", "ann"), ("x-user", "bob")], true),
            ("cookie=a=1; b=2", &[("cookie", "a=1"), ("cookie", "b=2")], true),
            ("host=shop.example", &[], true),
            ("host=shop.example", &[("host", "other.example")], false),
        ] {
            assert_eq!(header_matches(rule, headers), expected, "{rule} on {headers:?}");
        }
    }

    #[test]
    fn members_of_baggage_and_tracestate_are_values_of_their_own() {
        for (rule, headers, expected) in [
            ("baggage:user=ann", &[("baggage", "user=ann")][..], true),
            ("baggage:user=ann", &[("baggage", "team=red, user = ann ;ttl=1,x=y")], true),
            ("baggage:user=ann", &[("baggage", "team=red"), ("baggage", "user=ann")], true),
            ("baggage:user=ann", &[("baggage", "user=bob,user=ann")], false),
            ("baggage:user=ann lee", &[("baggage", "user=ann%20lee")], true),
            ("baggage:user=50%", &[("baggage", "user=50%")], true),
            ("baggage:user=ann", &[("baggage", "superuser=ann")], false),
            ("tracestate:tp=ann%20", &[("tracestate", "vendor@x=1,tp=ann%20")], true),
            ("tracestate:tp=~a.*", &[("tracestate", "tp=ann")], true),
        ] {
            assert_eq!(header_matches(rule, headers), expected, "{rule} on {headers:?}");
        }
    }

    #[test]
    fn headers_narrow_and_methods_and_paths_widen() {
        let filter = Filter::new(
            vec!["x-user=ann".parse().unwrap(), "x-team=~r.*".parse().unwrap()],
            vec![parse_method("get").unwrap(), Method::PUT],
            vec![PathRule::equal("/cart").unwrap(), PathRule::prefix("/api/").unwrap()],
        )
        .unwrap();
        let both = [("x-user", "ann"), ("x-team", "red")];
        for (method, path, headers, expected) in [
            ("GET", "/cart", &both[..], true),
            ("PUT", "/api/v1?x=/cart", &both, true),
            ("POST", "/cart", &both, false),
            ("GET", "/carts", &both, false),
            ("GET", "/api", &both, false),
            ("GET", "/cart", &both[..1], false),
        ] {
            assert_eq!(filter.matches(Head::from(&request(method, path, headers))), expected, "{method} {path}");
        }
        assert_eq!(filter.to_string(), "x-user=ann and x-team=~r.* and (GET or PUT) and (path /cart or path /api/...)");
        assert_eq!(Filter::default().to_string(), "every request");
    }

    #[test]
    fn grpc_names_are_paths() {
        let all = PathRule::grpc("shop.Cart").unwrap();
        assert!(all.matches("/shop.Cart/Add") && !all.matches("/shop.Carts/Add"));
        let add = PathRule::grpc("shop.Cart/Add").unwrap();
        assert!(add.matches("/shop.Cart/Add") && !add.matches("/shop.Cart/AddAll"));
        for name in ["", "/", "shop.Cart/", "/shop.Cart/Add", "shop cart", "a/b/c"] {
            assert_eq!(PathRule::grpc(name), Err(FilterError::BadGrpc(name.into())));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (rule, expected) in [
            ("x-user: ann", "has no `=`"),
            ("x user=ann", "not a header's name"),
            ("=ann", "not a header's name"),
            ("cookie:sid=1", "only `baggage:KEY`"),
            ("baggage:=1", "only `baggage:KEY`"),
            ("x-user=~(", "not a regular expression"),
        ] {
            let error = rule.parse::<HeaderRule>().unwrap_err().to_string();
            assert!(error.contains(expected), "{rule}: {error}");
        }
        assert!(parse_method("G T").is_err());
        assert!(PathRule::equal("cart").is_err());
        let twice = ["x-user=ann", "x-user=bob"].map(|rule| rule.parse().unwrap());
        let error = Filter::new(twice.to_vec(), vec![], vec![]).unwrap_err();
        assert!(matches!(error, FilterError::Contradiction(..)), "{error}");
        let many = (0..=MAX_RULES).map(|n| PathRule::equal(&format!("/{n}")).unwrap()).collect();
        assert_eq!(Filter::new(vec![], vec![], many), Err(FilterError::TooManyRules(MAX_RULES + 1)));
    }

    #[test]
    fn a_rule_reads_what_it_shows() {
        for rule in ["x-user=ann", "x-user=~an+", "baggage:user=ann", "tracestate:a@b=~.*"] {
            assert_eq!(rule.parse::<HeaderRule>().unwrap().to_string(), rule);
        }
    }
}
