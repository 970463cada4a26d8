//! The messages on the socket, generated from `proxy/proto`.

#![allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    rustdoc::invalid_html_tags
)]

use zeroize::Zeroize;

tonic::include_proto!("_");

/// `google.protobuf.Any`, wiped when dropped: what is packed in it may be a private key.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
#[prost(skip_debug)]
pub struct WipedAny {
    /// Which message is packed.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The packed message.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Drop for WipedAny {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Drop for X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

/// Names a message and shows nothing of it.
macro_rules! redacted {
    ($($message:ty: $name:literal),+ $(,)?) => { $(
        impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!($name, "(redacted)"))
            }
        }
    )+ };
}
redacted!(
    WipedAny: "Any",
    X509svid: "X509SVID",
    Jwtsvid: "JWTSVID",
    ValidateJwtsvidRequest: "ValidateJWTSVIDRequest",
    envoy::config::core::v3::DataSource: "DataSource",
);

pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");

                impl Drop for DataSource {
                    fn drop(&mut self) {
                        if let Some(data_source::Specifier::InlineBytes(bytes)) =
                            &mut self.specifier
                        {
                            zeroize::Zeroize::zeroize(bytes);
                        }
                    }
                }
            }
        }
    }
    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                pub mod v3 {
                    tonic::include_proto!("envoy.extensions.transport_sockets.tls.v3");
                }
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
        pub mod secret {
            pub mod v3 {
                tonic::include_proto!("envoy.service.secret.v3");
            }
        }
    }
}
