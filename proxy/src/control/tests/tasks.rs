//! Identities of tasks: asked for once, renewed while they are used, and bounded.

use sidewind_api::Reason;

use super::*;
use crate::airflow::LiveToken;
use crate::config::Secret;
use crate::control::tasks::MAX_TASKS;

const PAYROLL: &str = "spiffe://sidewind.local/ns/data/sa/orders/dag/payroll/task/charge";

async fn ready() -> (World, Fake, Proxy) {
    let world = World::new();
    let fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.identity(1).await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(300));
    (world, fake, proxy)
}

/// The next time that an SVID of a task is asked for.
async fn next(fake: &mut Fake) -> v1::IssueTaskSvidRequest {
    loop {
        if let Seen::Task(request) = fake.next().await {
            return request;
        }
    }
}

fn asked(fake: &mut Fake) -> usize {
    let mut times = 0;
    while let Ok(seen) = fake.seen.try_recv() {
        times += usize::from(matches!(seen, Seen::Task(_)));
    }
    times
}

fn evidence(ti_id: &str, token: &str) -> TaskEvidence {
    let live = LiveToken::default();
    live.set(Secret::new(token));
    TaskEvidence {
        ti_id: ti_id.to_owned(),
        token: live,
        said: v1::TaskInstance {
            run_id: format!("run of {ti_id}"),
            ..v1::TaskInstance::default()
        },
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_for_a_task_at_once_get_the_one_identity_that_is_issued() {
    let (_world, mut fake, proxy) = ready().await;
    let asks = (0..20).map(|_| proxy.control.tasks.task_identity("payroll", "charge", None));
    let answers = futures_util::future::join_all(asks).await;
    let first = answers[0].as_ref().unwrap().present();
    assert_eq!(first.id.as_str(), PAYROLL);
    for answer in &answers {
        assert!(Arc::ptr_eq(&answer.as_ref().unwrap().present(), &first));
    }
    assert_eq!(asked(&mut fake), 1);
    let own = proxy.control.identity.borrow().clone().unwrap();
    assert_ne!(own.serial_hex, first.serial_hex);
    assert_eq!(
        own.id.as_str(),
        WORKLOAD,
        "the workload's own stays what it is"
    );
    let other = proxy.control.tasks.task_identity("payroll", "check", None);
    let other = other.await.unwrap().present();
    assert_ne!((&other.id, other.generation), (&first.id, first.generation));
    assert_eq!(proxy.control.status.borrow().task_svids_issued, 2);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_renewed_for_as_long_as_it_is_held_and_forgotten_afterwards() {
    let (_world, mut fake, mut proxy) = ready().await;
    let ask = proxy.control.tasks.task_identity("payroll", "charge", None);
    let mut held = ask.await.unwrap();
    next(&mut fake).await;
    let mut serials = vec![held.present().serial_hex.clone()];
    for _ in 0..3 {
        let before = Instant::now();
        next(&mut fake).await;
        assert!(held.changed().await);
        let waited = before.elapsed().as_secs();
        assert!((70..=101).contains(&waited), "{waited} s of 300");
        serials.push(held.present().serial_hex.clone());
    }
    serials.dedup();
    assert_eq!(serials.len(), 4, "each certificate is new");
    drop(held);
    proxy.status(|status| status.task_identities == 0).await;
    assert_eq!(asked(&mut fake), 0);
    // Whoever comes later gets a new one.
    let again = proxy.control.tasks.task_identity("payroll", "charge", None);
    assert!(!serials.contains(&again.await.unwrap().present().serial_hex));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_not_asked_for_by_each_connection() {
    let (_world, mut fake, proxy) = ready().await;
    fake.behave(|behaviour| behaviour.refuses_as = Some(Reason::TaskRefused));
    let ask = || proxy.control.tasks.task_identity("payroll", "charge", None);
    for _ in 0..10 {
        let error = ask().await.unwrap_err();
        assert!(error.to_string().contains("refused by the fake"), "{error}");
    }
    assert_eq!(asked(&mut fake), 1);
    fake.behave(|behaviour| behaviour.refuses_as = None);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(ask().await.unwrap().present().id.as_str(), PAYROLL);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_may_have_no_identity_any_more_loses_it_at_its_renewal() {
    let (_world, mut fake, proxy) = ready().await;
    let ask = proxy.control.tasks.task_identity("payroll", "charge", None);
    let mut held = ask.await.unwrap();
    next(&mut fake).await;
    fake.behave(|behaviour| behaviour.refuses_as = Some(Reason::Banned));
    next(&mut fake).await;
    assert!(!held.changed().await);
    assert_eq!(proxy.control.status.borrow().task_svid_failures, 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_leaves_the_identity_until_its_end_and_not_longer() {
    let (world, mut fake, proxy) = ready().await;
    let ask = proxy.control.tasks.task_identity("payroll", "charge", None);
    let mut held = ask.await.unwrap();
    let end = held.present().not_after;
    fake.kill().await;
    let began = Instant::now();
    assert!(!held.changed().await);
    assert!(world.time.now() >= end);
    assert!(began.elapsed() <= Duration::from_secs(332));
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_asks_to_wait_is_not_asked_sooner() {
    let (_world, mut fake, proxy) = ready().await;
    fake.behave(|behaviour| {
        behaviour.refuses_as = Some(Reason::RateLimited);
        behaviour.retry_after = Some(Duration::from_secs(50));
    });
    let ask = || proxy.control.tasks.task_identity("payroll", "charge", None);
    ask().await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(49)).await;
    ask().await.unwrap_err();
    assert_eq!(asked(&mut fake), 1);
    tokio::time::sleep(Duration::from_secs(28)).await;
    ask().await.unwrap_err();
    assert_eq!(asked(&mut fake), 1);
}

#[tokio::test(start_paused = true)]
async fn an_svid_of_another_task_or_workload_is_not_used() {
    for other in [
        WORKLOAD.to_owned(),
        format!("{WORKLOAD}/dag/payroll/task/other"),
        "spiffe://sidewind.local/ns/data/sa/other/dag/payroll/task/charge".to_owned(),
    ] {
        let (_world, fake, proxy) = ready().await;
        fake.behave(|behaviour| behaviour.tasks_as = Some(other.clone()));
        let ask = proxy.control.tasks.task_identity("payroll", "charge", None);
        let error = ask.await.unwrap_err().to_string();
        let expected = format!("an SVID for {other} in place of {PAYROLL}");
        assert!(error.contains(&expected), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn new_roots_reach_the_identities_of_tasks() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    let ask = proxy.control.tasks.task_identity("payroll", "charge", None);
    let mut held = ask.await.unwrap();
    let before = held.present();
    let mut bundle = fake.authority.bundle(2);
    bundle
        .authorities
        .extend(Authority::new().bundle(2).authorities);
    let bundles = vec![bundle];
    send(
        &answers,
        Message::TrustBundles(v1::TrustBundles { bundles }),
    )
    .await;
    assert!(held.changed().await);
    let after = held.present();
    assert_eq!(after.serial_hex, before.serial_hex);
    assert!(after.generation > before.generation);
}

#[tokio::test(start_paused = true)]
async fn a_tainted_authority_makes_tasks_renew_too() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(7200));
    let proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    let ask = proxy.control.tasks.task_identity("payroll", "charge", None);
    let mut held = ask.await.unwrap();
    let subject_key_ids = vec![fake.authority.rotate()];
    let message = v1::TaintedAuthorities { subject_key_ids };
    let began = Instant::now();
    send(&answers, Message::TaintedAuthorities(message)).await;
    assert!(held.changed().await);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn the_newest_token_is_brought_at_each_renewal_and_shown_nowhere() {
    let (_world, mut fake, proxy) = ready().await;
    let ask = |evidence: &TaskEvidence| {
        let evidence = Some(evidence.clone());
        proxy
            .control
            .tasks
            .task_identity("payroll", "charge", evidence)
    };
    let (one, two) = (evidence("0199", "first-secret"), evidence("0200", "other"));
    let mut held = ask(&one).await.unwrap();
    let brought = next(&mut fake).await.airflow.unwrap();
    assert_eq!(
        (brought.ti_id.as_str(), brought.token.as_str()),
        ("0199", "first-secret")
    );
    // Another instance of the same task, which ends before the renewal.
    ask(&two).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    one.token.set(Secret::new("second-secret"));
    let request = next(&mut fake).await;
    assert_eq!(request.instance.unwrap().run_id, "run of 0199");
    let brought = request.airflow.unwrap();
    assert_eq!(
        (brought.ti_id.as_str(), brought.token.as_str()),
        ("0199", "second-secret")
    );
    assert!(held.changed().await);
    let shown = format!("{one:?}");
    assert!(
        shown.contains("0199") && !shown.contains("secret"),
        "{shown}"
    );
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_tasks_and_those_in_use_are_not_forgotten_for_others() {
    let (_world, _fake, proxy) = ready().await;
    let tasks = &proxy.control.tasks;
    let ask = |number: usize| {
        let name = format!("t{number}");
        async move { tasks.task_identity("d", &name, None).await }
    };
    let mut held = Vec::new();
    for number in 0..MAX_TASKS - 1 {
        held.push(ask(number).await.unwrap());
    }
    // The last place is of whoever needs it.
    for number in MAX_TASKS..MAX_TASKS + 3 {
        ask(number).await.unwrap();
    }
    held.push(ask(MAX_TASKS + 9).await.unwrap());
    let error = ask(MAX_TASKS + 10).await.unwrap_err().to_string();
    assert!(error.contains("all are in use"), "{error}");
    held.pop();
    ask(MAX_TASKS + 10).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_task_has_is_refused_here() {
    let (_world, mut fake, proxy) = ready().await;
    let long = "x".repeat(1001);
    let error = proxy.control.tasks.task_identity("d", &long, None).await;
    assert!(error.unwrap_err().to_string().contains("1001 bytes"));
    assert_eq!(asked(&mut fake), 0);
}
