//! The words that registrations have for what attestors find out.
//!
//! One table serves the `selectors` of a registration and the placeholders of its templates, so that both
//! always know the same words.

/// What one attestor finds out.
#[derive(Debug)]
pub struct Section {
    /// Its field under `selectors`, and the first part of a placeholder.
    pub name: &'static str,
    /// The attestor's kind, as registrations are stored with it.
    pub attestor: &'static str,
    /// Its words.
    pub fields: &'static [Field],
}

/// One word.
#[derive(Debug)]
pub struct Field {
    /// The field under the section.
    pub name: &'static str,
    /// The selector's key; of a field with names of its own, what stands before the name.
    pub key: &'static str,
    /// Whether the field holds names of its own, like labels.
    pub named: bool,
}

const fn one(name: &'static str, key: &'static str) -> Field {
    Field {
        name,
        key,
        named: false,
    }
}

const fn named(name: &'static str, key: &'static str) -> Field {
    Field {
        name,
        key,
        named: true,
    }
}

/// Every section.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "kubernetes",
        attestor: "kubernetes",
        fields: &[
            one("cluster", "kubernetes:cluster"),
            one("namespace", "kubernetes:namespace"),
            one("serviceAccount", "kubernetes:service-account"),
            one("podName", "kubernetes:pod-name"),
            one("podUid", "kubernetes:pod-uid"),
            one("node", "kubernetes:node"),
            named("podLabels", "kubernetes:pod-label:"),
        ],
    },
    Section {
        name: "oidc",
        attestor: "oidc",
        fields: &[
            one("issuer", "oidc:issuer"),
            one("subject", "oidc:subject"),
            named("claims", "oidc:claim:"),
        ],
    },
    Section {
        name: "awsIam",
        attestor: "aws-iam",
        fields: &[
            one("roleArn", "aws-iam:role-arn"),
            one("roleName", "aws-iam:role-name"),
            one("roleId", "aws-iam:role-id"),
            one("accounts", "aws-iam:account"),
            one("partition", "aws-iam:partition"),
        ],
    },
    Section {
        name: "x509",
        attestor: "x509",
        fields: &[
            one("authority", "x509:authority"),
            one("subjectCn", "x509:subject-cn"),
            one("dnsNames", "x509:dns"),
            one("uris", "x509:uri"),
            one("sha256", "x509:sha256"),
            one("issuer", "x509:issuer"),
        ],
    },
];

impl Section {
    /// The section of a field under `selectors`.
    #[must_use]
    pub fn of_name(name: &str) -> Option<&'static Self> {
        SECTIONS.iter().find(|section| section.name == name)
    }

    /// A word of the section.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Its words, for messages.
    #[must_use]
    pub fn words(&self) -> String {
        let names: Vec<&str> = self.fields.iter().map(|field| field.name).collect();
        names.join(", ")
    }

    /// The selector's key of a word as placeholders have it: `namespace`, `podLabels.app`.
    #[must_use]
    pub fn key_of(&self, word: &str) -> Option<String> {
        let (name, rest) = word
            .split_once('.')
            .map_or((word, None), |(name, rest)| (name, Some(rest)));
        let field = self.field(name)?;
        match (field.named, rest) {
            (false, None) => Some(field.key.to_owned()),
            (true, Some(rest)) if !rest.is_empty() => Some(format!("{}{rest}", field.key)),
            _ => None,
        }
    }
}
