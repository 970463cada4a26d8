//! A database that is put back to an older copy while a control plane is at work on it.

use crate::postgres::PostgresServer;
use crate::support::{ControlPlane, Proxy, TRUST_DOMAIN, from_proxy, hello, svid_of};
use sidewind_api::v1;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_control_plane::store::Location;
use sidewind_identity::{PrivateKey, TrustBundle, TrustDomain};
use std::sync::Arc;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

/// Copies every table.
const SAVE: &str = "
CREATE SCHEMA saved;
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
    EXECUTE format('CREATE TABLE saved.%I AS TABLE public.%I', name, name);
  END LOOP;
END $$;";

/// Puts every table back, and the sequences, in one transaction, as `pg_restore --clean --single-transaction` does.
const RESTORE: &str = "
SET session_replication_role = replica;
DO $$ DECLARE name text; own record; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'saved' LOOP
    EXECUTE format('TRUNCATE public.%I CASCADE', name);
  END LOOP;
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'saved' LOOP
    EXECUTE format('INSERT INTO public.%I OVERRIDING SYSTEM VALUE SELECT * FROM saved.%I', name, name);
  END LOOP;
  FOR own IN SELECT table_name AS t, column_name AS c FROM information_schema.columns
      WHERE table_schema = 'public' AND pg_get_serial_sequence(table_name, column_name) IS NOT NULL LOOP
    EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, %L), (SELECT coalesce(max(%I), 1) FROM public.%I))',
      own.t, own.c, own.c, own.t);
  END LOOP;
END $$;";

async fn run(server: &PostgresServer, script: &'static str) {
    let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
    sqlx::raw_sql(script).execute(&pool).await.unwrap();
    pool.close().await;
}

struct Mesh {
    server: PostgresServer,
    control_plane: ControlPlane,
    proxy: Proxy,
}

impl Mesh {
    async fn begin() -> Self {
        let server = PostgresServer::start().await;
        let store = Location::parse(&server.url()).unwrap();
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let control_plane =
            ControlPlane::start_in(directory, |settings| settings.store = store).await;
        let proxy = control_plane.client.proxy(ORDERS, vec![]).await;
        Self {
            server,
            control_plane,
            proxy,
        }
    }

    async fn rotate_root(&self) {
        let request = v1::RotateAuthorityRequest {
            kind: v1::AuthorityKind::Root.into(),
            dry_run: false,
            force: true,
        };
        let mut admin = self.control_plane.client.admin_service().await;
        admin.rotate_authority(request).await.unwrap();
    }

    /// As a proxy does once another root signs: a new certificate, and a new stream with it.
    async fn renew(&mut self) {
        let mut client = self.control_plane.client.clone();
        let file = client.admin_socket().with_file_name("trust-bundle.pem");
        let pem = std::fs::read_to_string(file).unwrap();
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
        let bundle = TrustBundle::from_pem(trust_domain, &pem).unwrap();
        client.bundles = Arc::new(bundle.into());
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr_der().unwrap();
        let svid = svid_of(client.renew(&self.proxy.svid, csr).await.unwrap(), key);
        self.proxy = client.stream(&svid, hello(vec![])).await.unwrap();
    }

    async fn first_root(&self) -> String {
        let mut admin = self.control_plane.client.admin_service().await;
        let answer = admin.get_authority(v1::GetAuthorityRequest {}).await;
        let all = answer.unwrap().into_inner().authorities.into_iter();
        let mut roots = all.filter(|it| it.role == "root");
        roots.next().unwrap().subject_key_id
    }

    /// Revokes a root, and has the proxy acknowledge the bundle without it. Gives back that bundle.
    async fn revoke(&mut self, key_id: &str, certificate: &[u8]) -> v1::TrustBundle {
        let request = v1::RevokeAuthorityRequest {
            subject_key_id: key_id.to_owned(),
            force: true,
        };
        let mut admin = self.control_plane.client.admin_service().await;
        admin.revoke_authority(request).await.unwrap();
        let bundle = loop {
            let bundle = self.bundle().await;
            if !has(&bundle, certificate) {
                break bundle;
            }
        };
        let message = FromProxy::Acknowledge(v1::Acknowledge {
            bundles: vec![v1::BundleSequence {
                trust_domain: TRUST_DOMAIN.to_owned(),
                sequence: bundle.sequence,
            }],
            bans_version: 0,
            svid_serial: self.proxy.svid.serial_hex().to_owned(),
        });
        self.proxy.sender.send(from_proxy(message)).await.unwrap();
        bundle
    }

    async fn bundle(&mut self) -> v1::TrustBundle {
        let bundle = |message| match message {
            ToProxy::TrustBundles(mut bundles) => bundles.bundles.pop(),
            _ => None,
        };
        self.proxy.next_of(bundle).await
    }
}

fn has(bundle: &v1::TrustBundle, certificate: &[u8]) -> bool {
    let mut authorities = bundle.authorities.iter();
    authorities.any(|authority| authority == certificate)
}

#[tokio::test]
async fn an_older_copy_that_signs_by_a_revoked_root_ends_the_process_and_reaches_no_proxy() {
    let mut mesh = Mesh::begin().await;
    let first = mesh.first_root().await;
    let certificate = mesh.bundle().await.authorities[0].clone();
    run(&mesh.server, SAVE).await;
    mesh.rotate_root().await;
    mesh.rotate_root().await;
    mesh.renew().await;
    mesh.revoke(&first, &certificate).await;
    run(&mesh.server, RESTORE).await;
    loop {
        match mesh.proxy.next().await {
            Ok(Some(ToProxy::TrustBundles(bundles))) => {
                assert!(!has(&bundles.bundles[0], &certificate), "{bundles:?}");
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    let error = mesh.control_plane.ended().await.unwrap_err();
    let error = sidewind_control_plane::telemetry::chain(&error);
    assert!(error.contains(&first), "{error}");
    assert!(error.contains("Restore a later copy"), "{error}");
}

#[tokio::test]
async fn an_older_copy_that_trusts_a_revoked_root_has_it_revoked_again_before_any_proxy_hears_of_it()
 {
    let mut mesh = Mesh::begin().await;
    let first = mesh.first_root().await;
    let certificate = mesh.bundle().await.authorities[0].clone();
    mesh.rotate_root().await;
    mesh.rotate_root().await;
    mesh.renew().await;
    run(&mesh.server, SAVE).await;
    let known = mesh.revoke(&first, &certificate).await;
    run(&mesh.server, RESTORE).await;
    let next = mesh.bundle().await;
    assert!(next.sequence > known.sequence, "{next:?}");
    assert_eq!(next.authorities, known.authorities);
    let restored = "sidewind_store_restored_total 1";
    mesh.control_plane.metric(restored).await;
}
