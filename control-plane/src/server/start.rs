//! Puts the rooms together, in the order in which they need one another, and runs them.

use super::admin_http::{self, AdminHttp};
use super::admin_socket::{self, AdminApi};
use super::authorities::Authorities;
use super::bundle_endpoint::{self, BundleEndpoint, Proof};
use super::error::StartError;
use super::health::Health;
use super::identity::IdentityApi;
use super::limits::Limits;
use super::line::Line;
use super::listener;
use super::measure::MeasureLayer;
use super::mesh::MeshApi;
use super::subjects::Subjects;
use super::turnstile::{Turnstile, TurnstileLayer};
use super::web_certificate::WebCertificate;
use super::{BundleEndpoints, Settings, Shutdown, clock, keeping, resources};
use crate::attest::Attestors;
use crate::attest::airflow::AirflowWord;
use crate::config::Live;
use crate::config::watch::Watcher;
use crate::federation::Federation;
use crate::issuance::admission::Admission;
use crate::issuance::authority::CertificateAuthority;
use crate::issuance::authority::slots::Slots;
use crate::issuance::bans::Bans;
use crate::issuance::issuer::{Issuer, check_lifetime, check_lifetime_range};
use crate::issuance::jwt::JwtKeys;
use crate::issuance::jwt::mint::{JwtMint, check_jwt_lifetime};
use crate::issuance::own::OwnIdentity;
use crate::issuance::registrations::Registrations;
use crate::issuance::tasks::TaskIssuer;
use crate::registry::{Registry, WorkloadRecord};
use crate::store::writer::{Writer, writer};
use crate::store::{StateDir, Store, StoreError, Topic, audit_chain};
use crate::telemetry::{LogHandle, Metrics, Throttle, chain, lasting_fault};
use sidewind_api::MAX_PROXY_MESSAGE_BYTES;
use sidewind_api::v1::identity_service_server::IdentityServiceServer;
use sidewind_api::v1::mesh_service_server::MeshServiceServer;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// How long connections may take to end once the process is to end.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// How long the farewell from other replicas may take.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
/// How often certificates are looked at.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);
/// How often what has ended is deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// Connections with a finished handshake that nobody has taken up yet.
const ACCEPTED: usize = 64;

/// A control plane with its ports open, to be run.
#[derive(Debug)]
pub struct Server {
    rooms: Rooms,
    watcher: Option<Watcher>,
    grpc: TcpListener,
    admin: TcpListener,
    bundle_endpoints: Vec<(TcpListener, Proof)>,
    socket: UnixListener,
    socket_path: PathBuf,
    background: JoinSet<()>,
}

/// What everything else is made of.
#[derive(Debug)]
struct Rooms {
    state: Arc<StateDir>,
    store: Store,
    metrics: Arc<Metrics>,
    authority: Arc<CertificateAuthority>,
    authorities: Arc<Authorities>,
    own: Arc<OwnIdentity>,
    registrations: Arc<Registrations>,
    bans: Arc<Bans>,
    federation: Arc<Federation>,
    registry: Arc<Registry>,
    writer: Writer,
    config: Live,
    server_id: String,
    svid_ttl: Duration,
    limits: Limits,
    logs: Option<LogHandle>,
    jwt_keys: Arc<JwtKeys>,
    jwt_ttl: Duration,
}

impl Server {
    /// Takes the state up and opens the ports. Everything that was given is checked before the first.
    ///
    /// # Errors
    /// What cannot be used.
    pub async fn start(mut settings: Settings) -> Result<Self, StartError> {
        let (listen_grpc, listen_admin) = (settings.listen, settings.admin_listen);
        let BundleEndpoints { web, spiffe } = std::mem::take(&mut settings.bundle_endpoints);
        let web = web.map(|it| Ok((it.listen, WebCertificate::read(it.certificate, it.key)?)));
        let web = web.transpose().map_err(StartError::WebCertificate)?;
        let mut background = JoinSet::new();
        let has_partners = web.is_some() || spiffe.is_some();
        let (rooms, watcher) = Rooms::open(settings, has_partners, &mut background).await?;
        let listen = async |address: SocketAddr| {
            let failed = |source| StartError::Listen {
                what: address.to_string(),
                source,
            };
            TcpListener::bind(address).await.map_err(failed)
        };
        let grpc = listen(listen_grpc).await?;
        let admin = listen(listen_admin).await?;
        let mut bundle_endpoints = Vec::new();
        if let Some((address, certificate)) = web {
            let proof = Proof::Web(Arc::new(certificate));
            bundle_endpoints.push((listen(address).await?, proof));
        }
        if let Some(address) = spiffe {
            let proof = Proof::Spiffe(Arc::clone(&rooms.own));
            bundle_endpoints.push((listen(address).await?, proof));
        }
        let socket_path = StateDir::admin_socket(rooms.state.path());
        let socket = admin_socket::bind(&socket_path).map_err(|source| StartError::Listen {
            what: socket_path.display().to_string(),
            source,
        })?;
        Ok(Self {
            rooms,
            watcher,
            grpc,
            admin,
            bundle_endpoints,
            socket,
            socket_path,
            background,
        })
    }

    /// Lets the admin socket change what this process logs.
    #[must_use]
    pub fn with_logs(mut self, logs: LogHandle) -> Self {
        self.rooms.logs = Some(logs);
        self
    }

    /// The address of the gRPC port, as it was given by the system.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn grpc_address(&self) -> io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// The address of the admin port.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The addresses of the bundle endpoints: https_web first.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn bundle_endpoint_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let listeners = self.bundle_endpoints.iter();
        listeners
            .map(|(listener, _)| listener.local_addr())
            .collect()
    }

    /// Serves until the shutdown, and then ends gracefully.
    ///
    /// # Errors
    /// When serving fails, or an older copy of the store was restored that signs by what was distrusted since.
    pub async fn run(mut self, asked: Shutdown) -> Result<(), StartError> {
        let (trigger, shutdown) = super::shutdown();
        if let (Ok(grpc), Ok(admin)) = (self.grpc_address(), self.admin_address()) {
            tracing::info!(
                version = sidewind_api::VERSION,
                trust_domain = %self.rooms.authority.trust_domain(),
                state_dir = %self.rooms.state.path().display(),
                %grpc,
                %admin,
                "the control plane is serving"
            );
        }
        let Self {
            rooms,
            watcher,
            grpc,
            admin,
            bundle_endpoints,
            socket,
            socket_path,
            ..
        } = self;
        let rooms = Arc::new(rooms);
        let mut tasks = JoinSet::new();
        let registry = Arc::clone(&rooms.registry);
        tasks.spawn(async move { registry.run().await });
        if let Some(watcher) = watcher {
            let (registry, metrics) = (Arc::clone(&rooms.registry), Arc::clone(&rooms.metrics));
            let (live, federation) = (rooms.config.clone(), Arc::clone(&rooms.federation));
            let take = move |config| {
                resources::put_in_use(config, &live, &registry);
                federation.config_changed();
            };
            tasks.spawn(watcher.run(metrics, take));
        }
        tasks.spawn(Arc::clone(&rooms).maintain());
        tasks.spawn(Arc::clone(&rooms).maintain_bans());
        tasks.spawn(Arc::clone(&rooms.federation).run());
        for (listener, proof) in bundle_endpoints {
            if let Proof::Web(certificate) = &proof {
                tasks.spawn(bundle_endpoint::follow(Arc::clone(certificate)));
            }
            let (authority, metrics) = (Arc::clone(&rooms.authority), Arc::clone(&rooms.metrics));
            tasks.spawn(BundleEndpoint::new(proof, authority, metrics).serve(listener));
        }
        tasks.spawn(audit_chain::keep_sealed(rooms.store.clone()));
        let probes = rooms.probes(shutdown.clone());
        tasks.spawn(admin_http::serve(admin, Arc::new(probes)));
        let answering = admin_socket::serve(socket, rooms.admin_api(), shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = answering.await {
                tracing::error!(error = chain(&error), "the admin socket failed");
            }
        });
        let serving = rooms.serve_grpc(grpc, shutdown);
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = asked.wait() => {
                trigger.trigger();
                serving.await
            }
            // What an older copy says of tokens and identities is as wrong as what it says of roots.
            error = rooms.store.distrusted() => {
                trigger.trigger();
                let _ = serving.await;
                Err(error.into())
            }
        };
        tracing::info!("stopping");
        rooms.writer.flush().await;
        tasks.shutdown().await;
        // What cannot be sealed now is sealed at the next start.
        let _ = audit_chain::seal_all(&rooms.store).await;
        self.background.shutdown().await;
        // Who does not hear of it takes this process for one that died.
        let _ = tokio::time::timeout(FAREWELL_TIME, rooms.store.take_leave()).await;
        rooms.store.close().await;
        // What is left of it would only mislead.
        let _ = std::fs::remove_file(socket_path);
        served
    }
}

impl Rooms {
    async fn open(
        settings: Settings,
        has_partners: bool,
        background: &mut JoinSet<()>,
    ) -> Result<(Self, Option<Watcher>), StartError> {
        let now = SystemTime::now();
        let metrics = Arc::new(Metrics::new());
        // Before a first start makes a root.
        check_lifetime_range(settings.svid_ttl).map_err(StartError::Lifetime)?;
        check_jwt_lifetime(settings.jwt_ttl).map_err(StartError::JwtLifetime)?;
        let mut watched = resources::open(&settings)?;
        let state = Arc::new(StateDir::open(&settings.state_dir)?);
        let store =
            keeping::open_store(&state, settings.store, settings.store_key, &metrics).await?;
        let domain = settings.trust_domain;
        store.claim_trust_domain(domain.as_str()).await?;
        if !settings.trust_clock {
            clock::check(now, &Slots::read(store.authorities().await?)?)?;
        }
        // Of replicas that start at once on an empty store, one makes the root.
        let alone = store.keep_others_out("authorities").await?;
        let authority =
            CertificateAuthority::open(store.clone(), domain, settings.root, now).await?;
        drop(alone);
        let authority = authority
            .with_deadline(settings.rotation_deadline)
            .with_partners(has_partners);
        check_lifetime(&authority, settings.svid_ttl).map_err(StartError::Lifetime)?;
        let jwt_keys = Arc::new(JwtKeys::open(store.clone(), now).await?);
        authority.set_jwt_keys(jwt_keys.published());
        let authority = Arc::new(authority);
        resources::hold_against(&mut watched, &authority)?;
        state.write_trust_bundle(&authority.bundle().to_pem())?;
        let own = OwnIdentity::new(Arc::clone(&authority), Arc::clone(&metrics), now)?;
        let own = Arc::new(own);

        let bans = Arc::new(Bans::open(store.clone()).await?);
        let registrations = restore_registrations(&store, now).await?;
        // With other replicas there, they may be at those; sharing finds out.
        let known = if store.is_shared() {
            Vec::new()
        } else {
            restore_workloads(&store, now).await?
        };
        let (writer, writing) = writer(store.clone(), Arc::clone(&metrics));
        background.spawn(writing.run());
        let registry = Arc::new(Registry::new(
            settings.inbound_plaintext,
            authority.api_bundles(),
            known,
            writer.clone(),
            Arc::clone(&metrics),
        ));
        registry.set_bans(bans.api());
        for registration in registrations.all() {
            registry.learn_services(&registration);
        }
        keeping::share(&store, &registry, &metrics, background).await?;
        background.spawn(clock::watch(Arc::clone(&metrics)));
        background.spawn(clock::compare(store.clone(), Arc::clone(&metrics)));
        background.spawn(keeping::remember(store.clone()));
        metrics.config_current.set(1);
        let live = Live::default();
        let watcher = watched.map(|(watcher, config)| {
            resources::put_in_use(config, &live, &registry);
            watcher
        });
        let federation = Federation::open(
            store.clone(),
            live.clone(),
            Arc::clone(&authority),
            Arc::clone(&registry),
            Arc::clone(&metrics),
        );
        let federation = Arc::new(federation.await?);
        let authorities = Arc::new(Authorities {
            authority: Arc::clone(&authority),
            jwt_keys: Arc::clone(&jwt_keys),
            own: Arc::clone(&own),
            registry: Arc::clone(&registry),
            state: Arc::clone(&state),
            store: store.clone(),
            writer: writer.clone(),
            metrics: Arc::clone(&metrics),
            published: tokio::sync::Mutex::default(),
            followed: Default::default(),
        });
        authorities.publish().await;
        let rooms = Self {
            state,
            store,
            metrics,
            authority,
            authorities,
            own,
            registrations: Arc::new(registrations),
            bans,
            federation,
            registry,
            writer,
            config: live,
            server_id: settings.server_id,
            svid_ttl: settings.svid_ttl,
            limits: settings.limits,
            logs: None,
            jwt_keys,
            jwt_ttl: settings.jwt_ttl,
        };
        rooms.measure();
        Ok((rooms, watcher))
    }

    async fn serve_grpc(
        &self,
        listener: TcpListener,
        shutdown: Shutdown,
    ) -> Result<(), StartError> {
        let (sender, accepted) = mpsc::channel(ACCEPTED);
        let bounds = listener::Bounds::new(self.limits, Arc::clone(&self.metrics));
        let own = Arc::clone(&self.own);
        let attestors = Attestors::new(
            self.store.clone(),
            self.config.clone(),
            self.server_id.clone(),
        );
        let domain = self.authority.trust_domain().clone();
        let issuer = Arc::new(Issuer::new(
            Arc::clone(&self.authority),
            attestors,
            Admission::new(self.config.clone(), domain, self.svid_ttl),
            Arc::clone(&self.registrations),
            Arc::clone(&self.bans),
            self.writer.clone(),
            Arc::clone(&self.metrics),
        ));
        let (vouching, stopping) = (Arc::clone(&issuer), shutdown.clone());
        let accepting = listener::accept(listener, own, vouching, sender, bounds, stopping);
        let accepting = tokio::spawn(accepting);
        let metrics = Arc::clone(&self.metrics);
        let line = Arc::new(Line::new());
        let subjects = Arc::new(Subjects::new(self.limits));
        let turnstile = Turnstile::new(
            self.limits,
            Arc::clone(&line),
            Arc::clone(&subjects),
            Arc::clone(&issuer),
            metrics,
        );
        let turnstile = Arc::new(turnstile);
        let mint = JwtMint::new(
            Arc::clone(&issuer),
            Arc::clone(&self.jwt_keys),
            self.jwt_ttl,
        );
        let registry = Arc::clone(&self.registry);
        let airflow = AirflowWord::new(self.config.clone());
        let tasks = TaskIssuer::new(Arc::clone(&issuer), airflow);
        let identity = IdentityApi::new(Arc::clone(&issuer), mint, tasks, registry, line, subjects);
        let mesh = MeshApi {
            issuer,
            registry: Arc::clone(&self.registry),
            bans: Arc::clone(&self.bans),
            store: self.store.clone(),
            streams: Arc::default(),
            metrics: Arc::clone(&self.metrics),
            shutdown: shutdown.clone(),
        };
        let limit = MAX_PROXY_MESSAGE_BYTES;
        let registry = Arc::clone(&self.registry);
        let serving = listener::grpc_server()
            .layer(MeasureLayer(Arc::clone(&self.metrics)))
            .layer(TurnstileLayer(turnstile))
            .add_service(IdentityServiceServer::new(identity).max_decoding_message_size(limit))
            .add_service(MeshServiceServer::new(mesh).max_decoding_message_size(limit))
            .serve_with_incoming_shutdown(ReceiverStream::new(accepted), shutdown.clone().wait());
        // A connection ends when its streams do, so these are ended first.
        let drained = async move {
            shutdown.wait().await;
            registry.close();
            tokio::time::sleep(DRAIN_TIME).await;
        };
        let served = tokio::select! {
            served = serving => served.map_err(StartError::from),
            () = drained => Ok(()),
        };
        accepting.abort();
        served
    }

    fn admin_api(&self) -> AdminApi {
        AdminApi {
            authority: Arc::clone(&self.authority),
            authorities: Arc::clone(&self.authorities),
            store: self.store.clone(),
            registry: Arc::clone(&self.registry),
            bans: Arc::clone(&self.bans),
            federation: Arc::clone(&self.federation),
            svid_ttl: self.svid_ttl,
            metrics: Arc::clone(&self.metrics),
            logs: self.logs.clone(),
        }
    }

    fn probes(&self, shutdown: Shutdown) -> AdminHttp {
        let signer = Arc::clone(&self.authority);
        let metrics = Arc::clone(&self.metrics);
        AdminHttp {
            health: Health::new(signer, self.store.clone(), metrics, shutdown),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Looks after certificates and deletes what has ended. Runs until dropped.
    async fn maintain(self: Arc<Self>) {
        let mut interval = tokio::time::interval(MAINTENANCE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next_prune = tokio::time::Instant::now();
        let mut news = [Topic::Authorities, Topic::JwtKeys].map(|it| self.store.watch(it));
        loop {
            let [authorities, jwt_keys] = &mut news;
            // Another replica may have made the change.
            tokio::select! {
                _ = interval.tick() => {}
                _ = authorities.changed() => {}
                _ = jwt_keys.changed() => {}
            }
            let now = SystemTime::now();
            self.authorities.maintain(now).await;
            self.maintain_jwt_keys(now).await;
            if tokio::time::Instant::now() >= next_prune {
                next_prune = tokio::time::Instant::now() + PRUNE_INTERVAL;
                self.registrations.prune(self.store.passed(now));
                let pruned = self.store.prune(now).await;
                let chain_pruned = self.store.prune_audit_chain(now).await;
                if let Err(error) = pruned.and(chain_pruned) {
                    tracing::warn!(error = chain(&error), "what has ended is not deleted");
                }
            }
            self.measure();
        }
    }

    /// Takes up bans that other replicas have made, and those that proxies know of. By itself: what authorities come from
    /// may be slow to answer, and a ban waits for nobody. Runs until dropped.
    async fn maintain_bans(self: Arc<Self>) {
        let mut interval = tokio::time::interval(MAINTENANCE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut news = self.store.watch(Topic::Bans);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = news.changed() => {}
            }
            self.look_for_lost_bans();
            match self.bans.maintain(SystemTime::now()).await {
                Ok(true) => self.registry.set_bans(self.bans.api()),
                Ok(false) => {}
                Err(error) => {
                    lasting_fault("the bans cannot be read; those known stay in force", &error);
                }
            }
        }
    }

    /// A proxy that has a later list of bans than the store shows that an older copy was restored: it is asked for it.
    fn look_for_lost_bans(&self) {
        static BEHIND: Throttle = Throttle::new();
        let own = self.bans.version();
        let Some(latest) = self.registry.ask_for_bans(own) else {
            return;
        };
        if let Some(unsaid) = BEHIND.admit("bans") {
            tracing::error!(
                own,
                latest,
                unsaid,
                "a proxy has a later list of bans than the store: was it restored from an older copy? The proxies' lists \
                 are asked for, and what is in them and sealed by this control plane is taken up again"
            );
        }
    }

    async fn maintain_jwt_keys(&self, now: SystemTime) {
        match self.jwt_keys.maintain(now).await {
            Ok(true) => self.authorities.publish_jwt_keys(),
            Ok(false) => {}
            Err(error) => tracing::error!(
                error = chain(&error),
                "the keys of JWT-SVIDs cannot be looked after; the present one stays in use"
            ),
        }
    }

    fn measure(&self) {
        let jwt = self.jwt_keys.signer().expires();
        self.metrics.set_certificate_expiry("jwt-key", jwt);
        self.authorities.measure();
        let registrations = self.registrations.number();
        self.metrics
            .registrations
            .set(i64::try_from(registrations).unwrap_or(i64::MAX));
    }
}

async fn restore_registrations(
    store: &Store,
    now: SystemTime,
) -> Result<Registrations, StoreError> {
    let registrations = Registrations::of_store(store);
    for (registration, svid) in store.living_registrations(store.passed(now)).await? {
        registrations.restore(registration, svid);
    }
    Ok(registrations)
}

/// Workloads whose certificates have ended meanwhile cannot be back with them.
async fn restore_workloads(
    store: &Store,
    now: SystemTime,
) -> Result<Vec<WorkloadRecord>, StoreError> {
    let workloads = store.workloads().await?;
    let records = workloads.iter().filter_map(|workload| {
        let record = WorkloadRecord::from_api(workload);
        if record.is_none() {
            tracing::warn!(
                spiffe_id = workload.spiffe_id,
                "a stored workload cannot be read"
            );
        }
        record
    });
    Ok(records
        .filter(|record| record.svid_not_after >= store.passed(now))
        .collect())
}
