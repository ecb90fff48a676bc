//! Keys and certificates of the agents' port: a CA of the manager's own and short-lived leaves.
//!
//! Pure: what is made or read here is kept by `trust` in a Secret. Keys are ECDSA P-256.

use std::time::Duration;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ServerConfig};
use x509_parser::parse_x509_certificate;

/// How long a CA is good for.
const CA_DAYS: i64 = 3_650;

/// A CA that has less left is replaced. Its successor is trusted together with it until it ends.
const CA_RENEW_DAYS: i64 = 365;

/// How long a leaf is good for. Certificates start a day early, for clocks that are slow.
const LEAF_DAYS: i64 = 90;

/// A leaf is replaced when it is so old.
pub const LEAF_LIFE: Duration = Duration::from_secs(60 * 24 * 3_600);

/// The CA cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// Making or reading a key or certificate failed.
    #[error(transparent)]
    Rcgen(#[from] rcgen::Error),
    /// A certificate that is kept is not one.
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// TLS does not take the leaf.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A CA with its key.
#[derive(Clone)]
pub struct Ca {
    /// The certificate that signs, in PEM, and behind it older ones that are still to be trusted.
    pub bundle_pem: String,
    /// The key of the first certificate, in PEM (PKCS #8).
    pub key_pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("bundle_pem", &self.bundle_pem).finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a new CA. `previous` certificates that are still valid are trusted beside it.
    ///
    /// # Errors
    /// [`PkiError`] when there is no randomness.
    pub fn make(previous: Option<&Self>, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("tp-manager CA {now:.0}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, CA_DAYS);
        let mut bundle_pem = params.self_signed(&key)?.pem();
        for (pem, until) in previous.iter().flat_map(|ca| certificates(&ca.bundle_pem)) {
            if until > now {
                bundle_pem.push_str(&pem);
            }
        }
        Ok(Self { bundle_pem, key_pem: key.serialize_pem() })
    }

    /// Checks what was kept: the key fits the first certificate, which is a CA and has time left.
    #[must_use]
    pub fn is_usable(&self, now: Timestamp) -> bool {
        let Some((_, until)) = certificates(&self.bundle_pem).into_iter().next() else {
            return false;
        };
        until > now + CA_RENEW_DAYS.days_as_hours() && self.leaf(&["probe".to_owned()], now).is_ok()
    }

    /// Makes a leaf for `names` and the TLS configuration that presents it.
    ///
    /// # Errors
    /// [`PkiError`] when the CA cannot sign.
    pub fn leaf(&self, names: &[String], now: Timestamp) -> Result<ServerConfig, PkiError> {
        let ca_key = KeyPair::from_pem(&self.key_pem)?;
        let ca_der = CertificateDer::from_pem_slice(self.bundle_pem.as_bytes())
            .map_err(|error| PkiError::Malformed(error.to_string()))?;
        let (_, ca) = parse_x509_certificate(&ca_der).map_err(|error| PkiError::Malformed(error.to_string()))?;
        if ca.public_key().raw != ca_key.subject_public_key_info() || !ca.is_ca() {
            return Err(PkiError::Malformed("the key is not the certificate's".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&ca_der, ca_key)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "tp-manager");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, LEAF_DAYS);
        let leaf = params.signed_by(&key, &issuer)?;
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| PkiError::Malformed(error.to_owned()))?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        Ok(config)
    }
}

/// Returns the certificates of a bundle, each in PEM with the end of its validity. Malformed ones are left out.
fn certificates(bundle_pem: &str) -> Vec<(String, Timestamp)> {
    const END: &str = "-----END CERTIFICATE-----";
    bundle_pem
        .split_inclusive(END)
        .filter_map(|pem| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
            let (_, certificate) = parse_x509_certificate(&der).ok()?;
            let until = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?;
            Some((format!("{}\n", pem.trim()), until))
        })
        .collect()
}

/// Sets the validity to whole days: from the day before `now` until `days` after it.
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let rcgen_date = |date: jiff::civil::Date| {
        let [month, day] = [date.month(), date.day()].map(|n| u8::try_from(n).expect("months and days are positive"));
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    params.not_before = rcgen_date(today.saturating_sub(1.day()));
    params.not_after = rcgen_date(today.saturating_add(days.days()));
}

/// Days for a [`Timestamp`], which knows no calendar.
trait Days {
    fn days_as_hours(self) -> jiff::Span;
}

impl Days for i64 {
    fn days_as_hours(self) -> jiff::Span {
        (self * 24).hours()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::now()
    }

    /// Connects to `server` as an agent that trusts `bundle_pem` and expects `name`.
    async fn handshake(server: ServerConfig, bundle_pem: &str, name: &str) -> Result<(), std::io::Error> {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(bundle_pem.as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(16 << 10);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (connected, _) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, near),
            TlsAcceptor::from(Arc::new(server)).accept(far)
        );
        connected.map(drop)
    }

    #[tokio::test]
    async fn agents_trust_a_leaf_of_the_ca_for_its_names_only() {
        let ca = Ca::make(None, now()).unwrap();
        let leaf = || ca.leaf(&["tp-manager.tp-system.svc".to_owned()], now()).unwrap();
        handshake(leaf(), &ca.bundle_pem, "tp-manager.tp-system.svc").await.unwrap();
        assert!(handshake(leaf(), &ca.bundle_pem, "tp-manager.other.svc").await.is_err());
        let other = Ca::make(None, now()).unwrap();
        assert!(handshake(leaf(), &other.bundle_pem, "tp-manager.tp-system.svc").await.is_err());
    }

    #[tokio::test]
    async fn a_replaced_ca_is_trusted_beside_its_successor() {
        let old = Ca::make(None, now()).unwrap();
        let new = Ca::make(Some(&old), now()).unwrap();
        let name = ["tp-manager.tp-system.svc".to_owned()];
        for ca in [&old, &new] {
            handshake(ca.leaf(&name, now()).unwrap(), &new.bundle_pem, &name[0]).await.unwrap();
        }
    }

    #[test]
    fn expired_certificates_leave_the_bundle() {
        let past = now() - (CA_DAYS + 2).days_as_hours();
        let old = Ca::make(None, past).unwrap();
        let new = Ca::make(Some(&old), now()).unwrap();
        assert_eq!((certificates(&old.bundle_pem).len(), certificates(&new.bundle_pem).len()), (1, 1));
    }

    #[test]
    fn a_ca_is_usable_until_it_has_a_year_left() {
        let ca = Ca::make(None, now()).unwrap();
        assert!(ca.is_usable(now()));
        assert!(ca.is_usable(now() + (CA_DAYS - CA_RENEW_DAYS - 2).days_as_hours()));
        assert!(!ca.is_usable(now() + (CA_DAYS - CA_RENEW_DAYS + 2).days_as_hours()));
    }

    #[test]
    fn what_was_tampered_with_is_not_usable() {
        let (ca, other) = (Ca::make(None, now()).unwrap(), Ca::make(None, now()).unwrap());
        let broken = [
            Ca { key_pem: other.key_pem, ..ca.clone() },
            Ca { bundle_pem: String::new(), ..ca.clone() },
            Ca { key_pem: "garbage".to_owned(), ..ca.clone() },
            Ca { bundle_pem: ca.bundle_pem.replace('M', "N"), ..ca },
        ];
        for ca in broken {
            assert!(!ca.is_usable(now()), "{ca:?}");
        }
    }

    #[test]
    fn the_key_stays_out_of_debug_output() {
        let text = format!("{:?}", Ca::make(None, now()).unwrap());
        assert!(text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE"), "{text}");
    }
}
