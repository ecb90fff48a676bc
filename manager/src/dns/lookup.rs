//! Resolves names for dials, as a pod of the connected namespace would.

use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::OpenRefused;

use super::Forwarder;

/// Dots from which on a name is tried as it is first (`ndots` that kubelet writes for `ClusterFirst` pods).
const NDOTS: usize = 5;

/// Returns the names to try, in order, for `name` looked up in a pod of `namespace`.
///
/// This is the search list that kubelet writes (`NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN`); without a namespace only the
/// rest of it. A name that ends in a dot is tried alone.
fn candidates(name: &str, namespace: Option<&str>, domain: &str) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let absolute = format!("{name}.");
    let own = namespace.map(|namespace| format!("{name}.{namespace}.svc.{domain}."));
    let searched = own.into_iter().chain([format!("{name}.svc.{domain}."), format!("{name}.{domain}.")]);
    if name.bytes().filter(|&byte| byte == b'.').count() < NDOTS {
        searched.chain([absolute]).collect()
    } else {
        [absolute].into_iter().chain(searched).collect()
    }
}

/// Resolves `name` to all its addresses: IPv4 first, as they are answered.
///
/// # Errors
/// [`ErrorClass::NameNotFound`] when no candidate exists, or the first failure of the DNS.
pub(crate) async fn addresses(
    forwarder: &Forwarder,
    name: &str,
    namespace: Option<&str>,
    domain: &str,
) -> Result<Vec<IpAddr>, OpenRefused> {
    for candidate in candidates(name, namespace, domain) {
        let (v4, v6) =
            tokio::join!(ask(forwarder, &candidate, RecordType::A), ask(forwarder, &candidate, RecordType::AAAA));
        let found = match (v4, v6) {
            (Ok(mut found), Ok(more)) => {
                found.extend(more);
                found
            }
            // One family's failure must not hide the other's answer.
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => found,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(OpenRefused::new(ErrorClass::NameNotFound, format!("no address for the name {name}")))
}

/// Asks for one family's addresses of one name; none when the name does not exist.
async fn ask(forwarder: &Forwarder, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, OpenRefused> {
    let failed = |error: &dyn std::fmt::Display| OpenRefused::new(ErrorClass::Failed, format!("{name}: {error}"));
    let Ok(parsed) = Name::from_str(name) else {
        // Too long with a search domain behind it, for example: it cannot exist.
        return Ok(Vec::new());
    };
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(parsed, kind));
    let query = query.to_vec().map_err(|error| failed(&error))?;
    let answer = forwarder.forward(&query).await?;
    let answer = Message::from_vec(&answer).map_err(|error| failed(&error))?;
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        code => return Err(failed(&format_args!("the cluster's DNS answered {code}"))),
    }
    let records = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    Ok(records.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_searched_as_in_a_pod_of_the_namespace() {
        assert_eq!(
            candidates("web", Some("shop"), "cluster.local"),
            ["web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local.", "web."]
        );
        assert_eq!(candidates("web.shop", None, "c.l"), ["web.shop.svc.c.l.", "web.shop.c.l.", "web.shop."]);
    }

    #[test]
    fn names_with_many_dots_are_tried_as_they_are_first() {
        assert_eq!(candidates("a.b.c.d.e.f", Some("shop"), "c.l")[0], "a.b.c.d.e.f.");
        assert_eq!(candidates("web.", Some("shop"), "c.l"), ["web."]);
    }
}
