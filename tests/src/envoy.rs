//! Configurations of an Envoy that has its identity from a Workload API socket, by SDS, and speaks HBONE.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

/// Where its statistics are.
pub const ADMIN_PORT: u16 = 9901;

/// A kind of extension of Envoy's.
fn typed(name: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/envoy.{name}").into();
    fields
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn cluster(name: &str, endpoint: &Value) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": endpoint}}]},
        ]},
    })
}

fn over_http2(mut cluster: Value) -> Value {
    let options = json!({"explicit_http_config": {"http2_protocol_options": {}}});
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
            typed("extensions.upstreams.http.v3.HttpProtocolOptions", options),
    });
    cluster
}

/// A secret that is had from the socket.
fn secret(name: &str) -> Value {
    let source = json!({
        "api_type": "GRPC", "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "workload_api"}}],
    });
    json!({"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}})
}

/// Certificate and roots from the socket, and the one peer that is believed.
fn tls(roots: &str, peer: &str) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        // The maximum of a client is TLS 1.2 by default.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [secret("default")],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
            },
            "validation_context_sds_secret_config": secret(roots),
        },
    })
}

fn whole(socket: &Path, admin: SocketAddr, listener: Value, next: Value) -> String {
    let pipe = json!({"pipe": {"path": socket}});
    json!({
        "node": {"id": "envoy", "cluster": "tests"},
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [next, over_http2(cluster("workload_api", &pipe))],
        },
    })
    .to_string()
}

/// An Envoy that takes TCP at `listen` and carries it as `CONNECT destination` to the mesh port of a sidecar.
///
/// `roots` is the name of the secret that the sidecar's certificate is verified with.
pub fn client(
    socket: &Path,
    listen: SocketAddr,
    mesh_port: SocketAddr,
    destination: SocketAddr,
    roots: &str,
    peer: &str,
) -> String {
    let proxy = json!({
        "stat_prefix": "tunnel", "cluster": "mesh",
        "tunneling_config": {"hostname": destination.to_string()},
    });
    let listener = json!({
        "name": "in", "address": address(listen),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy),
        }]}],
    });
    let mut mesh = over_http2(cluster("mesh", &address(mesh_port)));
    let context = json!({"common_tls_context": tls(roots, peer)});
    mesh["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext", context),
    });
    whole(socket, (listen.ip(), ADMIN_PORT).into(), listener, mesh)
}

/// An Envoy that stands at a mesh port in a sidecar's stead, and ends tunnels at `application`.
pub fn server(
    socket: &Path,
    mesh_port: SocketAddr,
    application: SocketAddr,
    roots: &str,
    peer: &str,
) -> String {
    let route = json!({
        "match": {"connect_matcher": {}},
        "route": {"cluster": "application", "upgrade_configs": [
            {"upgrade_type": "CONNECT", "connect_config": {}},
        ]},
    });
    let manager = json!({
        "stat_prefix": "mesh",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": typed("extensions.filters.http.router.v3.Router", json!({})),
        }],
    });
    let context =
        json!({"require_client_certificate": true, "common_tls_context": tls(roots, peer)});
    let listener = json!({
        "name": "in", "address": address(mesh_port),
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": typed(
                    "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    manager,
                ),
            }],
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext", context),
            },
        }],
    });
    let application = cluster("application", &address(application));
    whole(
        socket,
        (mesh_port.ip(), ADMIN_PORT).into(),
        listener,
        application,
    )
}
