//! Evidence that is signed for one occasion: what both sides must spell alike.

/// Header of a signed request to STS: [`ChallengeResponse::server_id`](crate::v1::ChallengeResponse).
pub const SERVER_ID_HEADER: &str = "x-sidewind-server-id";
/// Header of a signed request to STS: [`ChallengeResponse::nonce`](crate::v1::ChallengeResponse).
pub const NONCE_HEADER: &str = "x-sidewind-nonce";
/// Header of a signed request to STS: lower-case hexadecimal SHA-256 of the signing request's
/// SubjectPublicKeyInfo in DER.
pub const KEY_HEADER: &str = "x-sidewind-key";

/// The body of a signed request to STS, byte for byte.
pub const STS_BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";

/// Most certificates of an X.509 proof: a leaf and four intermediates.
pub const MAX_PROOF_CERTIFICATES: usize = 5;
/// Most bytes of one certificate of an X.509 proof, and of all together.
pub const MAX_PROOF_CERTIFICATE_BYTES: usize = 16 * 1024;
/// See [`MAX_PROOF_CERTIFICATE_BYTES`].
pub const MAX_PROOF_CHAIN_BYTES: usize = 48 * 1024;

/// Prefix of the hosts of a partition's regions, the partition, and the suffix of its hosts. The first
/// prefix that fits counts.
const PARTITIONS: [(&str, &str, &str); 8] = [
    ("cn-", "aws-cn", "amazonaws.com.cn"),
    ("us-gov-", "aws-us-gov", "amazonaws.com"),
    ("us-iso-", "aws-iso", "c2s.ic.gov"),
    ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
    ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
    ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
    ("eusc-", "aws-eusc", "amazonaws.eu"),
    ("", "aws", "amazonaws.com"),
];

/// Most bytes of a region's name.
const MAX_REGION_BYTES: usize = 32;

/// The partition of an AWS region and the host of its STS; none for a text that is no region's name.
#[must_use]
pub fn sts_host(region: &str) -> Option<(&'static str, String)> {
    let is_word = |part: &str| {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !part.is_empty() && part.bytes().all(known)
    };
    let is_region = region.len() <= MAX_REGION_BYTES
        && region.split('-').count() >= 3
        && region.split('-').all(is_word)
        && region.ends_with(|end: char| end.is_ascii_digit());
    let mut partitions = PARTITIONS.iter().filter(|_| is_region);
    let (_, partition, suffix) = partitions.find(|row| region.starts_with(row.0))?;
    Some((partition, format!("sts.{region}.{suffix}")))
}

/// What the key of an existing certificate signs: the challenge, and the key that the new certificate is
/// for, by the SHA-256 of its SubjectPublicKeyInfo in DER.
#[must_use]
pub fn x509_proof(server_id: &str, nonce: &str, key_sha256: &[u8; 32]) -> Vec<u8> {
    let parts: [&[u8]; 4] = [
        b"sidewind x509 attestation v1",
        server_id.as_bytes(),
        nonce.as_bytes(),
        key_sha256,
    ];
    parts.join(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_its_own_hosts() {
        for (region, partition, host) in [
            ("eu-west-1", "aws", "sts.eu-west-1.amazonaws.com"),
            ("us-east-1", "aws", "sts.us-east-1.amazonaws.com"),
            ("cn-north-1", "aws-cn", "sts.cn-north-1.amazonaws.com.cn"),
            (
                "us-gov-west-1",
                "aws-us-gov",
                "sts.us-gov-west-1.amazonaws.com",
            ),
            (
                "eusc-de-east-1",
                "aws-eusc",
                "sts.eusc-de-east-1.amazonaws.eu",
            ),
            ("us-iso-east-1", "aws-iso", "sts.us-iso-east-1.c2s.ic.gov"),
        ] {
            assert_eq!(sts_host(region), Some((partition, host.to_owned())));
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_region() {
        for bad in [
            "",
            "eu",
            "global",
            "EU-WEST-1",
            "eu-west-1.evil",
            "eu-west-1@evil",
            "eu-west-1/evil",
            "eu-west-1#evil-1",
            "eu--west-1",
            "eu-west-1\n",
            "amazonaws.com.evil-eu-1",
            &format!("eu-{}-1", "w".repeat(40)),
        ] {
            assert_eq!(sts_host(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_proof_is_the_text_of_the_api() {
        let proof = x509_proof("s", "n", &[7; 32]);
        let text = b"sidewind x509 attestation v1\0s\0n\0";
        assert_eq!(proof, [&text[..], &[7; 32]].concat());
    }
}
