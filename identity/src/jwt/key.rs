//! Public keys that tokens are verified with: EC on three curves, RSA from 2048 to 4096 bits, and Ed25519 for tokens that
//! are no JWT-SVIDs.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::algorithm::Algorithm;
use super::error::JwtError;

const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 4096;
/// The least public exponent of FIPS 186-5.
const MIN_RSA_EXPONENT: u64 = 65_537;
/// Room for an RSA key of 4096 bits, and nothing near what would cost time to parse.
const MAX_SPKI_BYTES: usize = 1024;

/// Why bytes or a JWK are not a key that tokens are verified with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyMaterialError {
    /// Another kind of key.
    #[error("not an EC key on P-256, P-384 or P-521, nor an RSA key")]
    Kind,
    /// A member of the JWK is missing, or not base64url of the right length.
    #[error("the member '{0}' is missing or malformed")]
    Member(&'static str),
    /// The JWK holds a private or shared key, which was never to be published.
    #[error("it holds the member '{0}' of a private key")]
    Private(&'static str),
    /// The RSA key is too small or too large.
    #[error("the RSA key has {0} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")]
    RsaSize(usize),
    /// The RSA exponent is even, or small.
    #[error("the RSA exponent must be odd and at least {MIN_RSA_EXPONENT}")]
    RsaExponent,
    /// The bytes are no key: not DER, or a point that is not on its curve.
    #[error("malformed public key")]
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    P256,
    P384,
    P521,
    Rsa,
    Ed25519,
}

/// One of the curves, with everything about it that the forms of a key need.
struct Curve {
    kind: KeyKind,
    name: &'static str,
    /// Bytes of one coordinate (RFC 7518 section 6.2.1.2).
    coordinate_bytes: usize,
    /// The DER of a SubjectPublicKeyInfo up to the uncompressed point, its first byte (4) included (RFC 5480).
    spki_prefix: &'static [u8],
}

const CURVES: [Curve; 3] = [
    Curve {
        kind: KeyKind::P256,
        name: "P-256",
        coordinate_bytes: 32,
        spki_prefix: b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04",
    },
    Curve {
        kind: KeyKind::P384,
        name: "P-384",
        coordinate_bytes: 48,
        spki_prefix: b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00\x04",
    },
    Curve {
        kind: KeyKind::P521,
        name: "P-521",
        coordinate_bytes: 66,
        spki_prefix: b"\x30\x81\x9b\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23\x03\x81\x86\x00\x04",
    },
];

/// The DER of an Ed25519 key's SubjectPublicKeyInfo up to the key itself (RFC 8410).
const ED25519_SPKI_PREFIX: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const ED25519_BYTES: usize = 32;

/// A public key, checked when it was made. Equal to another exactly when they are the same key; clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct VerificationKey {
    kind: KeyKind,
    spki: Arc<[u8]>,
    /// What the JWK holds besides `kty` and `crv`: the coordinates, modulus and exponent, or the one `x` of Ed25519.
    numbers: Arc<[Vec<u8>]>,
}

impl VerificationKey {
    /// Reads a SubjectPublicKeyInfo in DER (RFC 5280 section 4.1): an EC key with its point uncompressed, or an RSA key.
    ///
    /// # Errors
    /// [`KeyMaterialError`] for what is no such key, and for RSA keys of another size.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyMaterialError> {
        if der.len() > MAX_SPKI_BYTES {
            return Err(KeyMaterialError::Malformed);
        }
        for curve in &CURVES {
            let point = der.strip_prefix(curve.spki_prefix);
            let halves = point.and_then(|point| point.split_at_checked(curve.coordinate_bytes));
            if let Some((x, y)) = halves.filter(|(_, y)| y.len() == curve.coordinate_bytes) {
                return Self::ec(curve, x, y);
            }
        }
        let (rest, info) =
            SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyMaterialError::Malformed)?;
        if !rest.is_empty() {
            return Err(KeyMaterialError::Malformed);
        }
        match info.parsed() {
            Ok(PublicKey::RSA(key)) => Self::rsa(unsigned(key.modulus), unsigned(key.exponent)),
            Ok(_) => Err(KeyMaterialError::Kind),
            Err(_) => Err(KeyMaterialError::Malformed),
        }
    }

    /// Reads the key of a JWK (RFC 7518 section 6) that may sign JWT-SVIDs. Members that do not belong to the key are the
    /// caller's.
    ///
    /// # Errors
    /// [`KeyMaterialError`] for what is no such key; [`KeyMaterialError::Kind`] where another kind may be meant.
    pub fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, KeyMaterialError> {
        let key = Self::from_issuer_jwk(jwk)?;
        if key.kind == KeyKind::Ed25519 {
            return Err(KeyMaterialError::Kind);
        }
        Ok(key)
    }

    /// Reads the key of a JWK that may sign the tokens of an issuer: also one of Ed25519 (RFC 8037 section 2).
    pub(super) fn from_issuer_jwk(jwk: &Map<String, Value>) -> Result<Self, KeyMaterialError> {
        // RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1.
        for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
            if jwk.contains_key(private) {
                return Err(KeyMaterialError::Private(private));
            }
        }
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let number = |name: &'static str| {
            let decoded = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            decoded.ok_or(KeyMaterialError::Member(name))
        };
        match text("kty") {
            Some("EC") => {
                let curve = text("crv").and_then(|crv| CURVES.iter().find(|c| c.name == crv));
                let curve = curve.ok_or(KeyMaterialError::Kind)?;
                Self::ec(curve, &number("x")?, &number("y")?)
            }
            Some("RSA") => Self::rsa(&number("n")?, &number("e")?),
            Some("OKP") if text("crv") == Some("Ed25519") => Self::ed25519(&number("x")?),
            _ => Err(KeyMaterialError::Kind),
        }
    }

    fn ec(curve: &Curve, x: &[u8], y: &[u8]) -> Result<Self, KeyMaterialError> {
        for (name, coordinate) in [("x", x), ("y", y)] {
            if coordinate.len() != curve.coordinate_bytes {
                return Err(KeyMaterialError::Member(name));
            }
        }
        let spki = [curve.spki_prefix, x, y].concat();
        let algorithm = match curve.kind {
            KeyKind::P256 => &ECDSA_P256_SHA256_FIXED,
            KeyKind::P384 => &ECDSA_P384_SHA384_FIXED,
            _ => &ECDSA_P521_SHA512_FIXED,
        };
        // That the point is on the curve.
        ParsedPublicKey::new(algorithm, &spki).map_err(|_| KeyMaterialError::Malformed)?;
        Ok(Self {
            kind: curve.kind,
            spki: spki.into(),
            numbers: Arc::new([x.to_vec(), y.to_vec()]),
        })
    }

    fn ed25519(x: &[u8]) -> Result<Self, KeyMaterialError> {
        if x.len() != ED25519_BYTES {
            return Err(KeyMaterialError::Member("x"));
        }
        let spki = [ED25519_SPKI_PREFIX, x].concat();
        ParsedPublicKey::new(&ED25519, &spki).map_err(|_| KeyMaterialError::Malformed)?;
        Ok(Self {
            kind: KeyKind::Ed25519,
            spki: spki.into(),
            numbers: Arc::new([x.to_vec()]),
        })
    }

    fn rsa(n: &[u8], e: &[u8]) -> Result<Self, KeyMaterialError> {
        let Some(first) = n.first().filter(|first| **first != 0) else {
            return Err(KeyMaterialError::Member("n"));
        };
        let bits = (n.len() * 8).saturating_sub(first.leading_zeros() as usize);
        if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
            return Err(KeyMaterialError::RsaSize(bits));
        }
        // aws-lc takes exponents of at most 33 bits, for the time that verifying takes.
        let exponent = match e {
            [] | [0, ..] | [_, _, _, _, _, ..] => return Err(KeyMaterialError::RsaExponent),
            bytes => bytes
                .iter()
                .fold(0_u64, |value, byte| (value << 8) | u64::from(*byte)),
        };
        if exponent < MIN_RSA_EXPONENT || exponent.is_multiple_of(2) {
            return Err(KeyMaterialError::RsaExponent);
        }
        let der = RsaPublicKeyComponents { n, e }.as_der();
        let der = der.map_err(|_| KeyMaterialError::Malformed)?;
        Ok(Self {
            kind: KeyKind::Rsa,
            spki: der.as_ref().into(),
            numbers: Arc::new([n.to_vec(), e.to_vec()]),
        })
    }

    /// The key as a SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The members of the key's JWK: `kty` and the numbers.
    pub fn to_jwk(&self) -> Map<String, Value> {
        let curve = CURVES.iter().find(|curve| curve.kind == self.kind);
        let (kind, curve, names): (_, _, &[_]) = match (self.kind, curve) {
            (_, Some(curve)) => ("EC", Some(curve.name), &["x", "y"]),
            (KeyKind::Ed25519, None) => ("OKP", Some("Ed25519"), &["x"]),
            (_, None) => ("RSA", None, &["n", "e"]),
        };
        let members = [("kty", Some(kind)), ("crv", curve)];
        let members = members
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?.to_owned())));
        let numbers = names.iter().copied().zip(&*self.numbers);
        let numbers = numbers.map(|(name, number)| (name, URL_SAFE_NO_PAD.encode(number)));
        let all = members.chain(numbers);
        all.map(|(name, value)| (name.to_owned(), value.into()))
            .collect()
    }

    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.kind == algorithm.key_kind()
    }

    /// Verifies a signature, with an algorithm that is this key's.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), JwtError> {
        if !self.fits(algorithm) {
            let kind = self.kind_name();
            return Err(JwtError::KeyKind { kind, algorithm });
        }
        UnparsedPublicKey::new(algorithm.verification(), &self.spki)
            .verify(message, signature)
            .map_err(|_| JwtError::Signature)
    }

    fn kind_name(&self) -> &'static str {
        let curve = CURVES.iter().find(|curve| curve.kind == self.kind);
        match (self.kind, curve) {
            (_, Some(curve)) => curve.name,
            (KeyKind::Ed25519, None) => "Ed25519",
            (_, None) => "RSA",
        }
    }
}

/// An ASN.1 INTEGER without the zero byte that keeps it positive. A negative one keeps its bytes, and is refused for
/// its size or as a key.
fn unsigned(integer: &[u8]) -> &[u8] {
    match integer {
        [0, rest @ ..] => rest,
        bytes => bytes,
    }
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKey")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
