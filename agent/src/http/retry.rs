//! Whether a request is tried again, and when.
//!
//! Pure: [`super::router`] asks after each try. Two kinds of further tries need no policy, because the endpoint never saw
//! the request or most likely did not: a connection that could not be opened (another endpoint is tried), and a connection
//! from the pool that the endpoint closed at that very moment (the keep-alive race).

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use super::route::{RetryOn, RetryPolicy};
use super::upstream::{Failure, FailureKind};

/// Endpoints tried for one request because connections could not be opened, the first one included.
pub const MAX_CONNECT_ATTEMPTS: u32 = 3;

/// What was tried so far, for one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    /// Connections that could not be opened.
    pub connects: u32,
    /// Times a dead connection was replaced.
    pub replaced: u32,
    /// Retries by the policy.
    pub retries: u32,
}

/// What is known of the request.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The same bytes can be sent again.
    pub replayable: bool,
    /// Endpoints of the cluster that take traffic and were not tried for this request. Not all that take traffic: the one
    /// that just refused may have been taken out in the meantime, and then its absence must not hide the others.
    pub untried: usize,
}

/// What happens after a try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At once, without being counted as a retry.
    Free,
    /// After the back-off, if the circuit breaker allows.
    Retry,
    /// The client is told.
    GiveUp,
    /// The client is told, and that all retries were used (flag URX).
    Exhausted,
}

/// After a try without a response.
pub fn after_failure(
    policy: Option<&RetryPolicy>,
    request: RequestFacts<'_>,
    failure: Failure,
    tried: Tried,
) -> Verdict {
    if !request.replayable || failure.kind == FailureKind::Request {
        return Verdict::GiveUp;
    }
    let connect = matches!(failure.kind, FailureKind::ConnectFailed | FailureKind::ConnectTimeout);
    if connect && request.untried > 0 && tried.connects < MAX_CONNECT_ATTEMPTS {
        return Verdict::Free;
    }
    if tried.replaced == 0 && is_safe_to_repeat(failure, request.method) {
        return Verdict::Free;
    }
    let Some(policy) = policy.filter(|policy| policy.retry_on.iter().any(|on| covers(*on, failure.kind))) else {
        return Verdict::GiveUp;
    };
    if tried.retries < policy.num_retries { Verdict::Retry } else { Verdict::Exhausted }
}

/// RFC 9110 section 9.2.2: a proxy must not repeat a request that is not idempotent, unless the endpoint did not see it.
fn is_safe_to_repeat(failure: Failure, method: &Method) -> bool {
    match failure.kind {
        FailureKind::NotSent => true,
        FailureKind::Terminated => failure.stale && method.is_idempotent(),
        _ => false,
    }
}

fn covers(on: RetryOn, kind: FailureKind) -> bool {
    use FailureKind as Kind;
    let connect = matches!(kind, Kind::ConnectFailed | Kind::ConnectTimeout);
    match on {
        // A try without an answer becomes a 5xx (Envoy, `RetryStateImpl::wouldRetryFromReset`).
        RetryOn::FiveXx | RetryOn::GatewayError | RetryOn::Reset => kind != Kind::Overflow,
        RetryOn::ResetBeforeRequest => connect || kind == Kind::NotSent,
        RetryOn::ConnectFailure => connect,
        RetryOn::RefusedStream => kind == Kind::RefusedStream,
        _ => false,
    }
}

/// After a response's headers.
pub fn after_response(
    policy: &RetryPolicy,
    replayable: bool,
    status: StatusCode,
    headers: &HeaderMap,
    tried: Tried,
) -> Verdict {
    let wanted = || policy.retry_on.iter().any(|on| wants(*on, policy, status, headers));
    if !replayable || !wanted() {
        Verdict::GiveUp
    } else if tried.retries < policy.num_retries {
        Verdict::Retry
    } else {
        Verdict::Exhausted
    }
}

fn wants(on: RetryOn, policy: &RetryPolicy, status: StatusCode, headers: &HeaderMap) -> bool {
    let grpc = |code: &str| headers.get("grpc-status").is_some_and(|value| value == code);
    match on {
        RetryOn::FiveXx => status.is_server_error(),
        RetryOn::GatewayError => matches!(status.as_u16(), 502..=504),
        RetryOn::Retriable4xx => status == StatusCode::CONFLICT,
        RetryOn::RetriableStatusCodes => policy.retriable_status_codes.contains(&status),
        RetryOn::GrpcCancelled => grpc("1"),
        RetryOn::GrpcDeadlineExceeded => grpc("4"),
        RetryOn::GrpcInternal => grpc("13"),
        RetryOn::GrpcResourceExhausted => grpc("8"),
        RetryOn::GrpcUnavailable => grpc("14"),
        RetryOn::Reset | RetryOn::ResetBeforeRequest | RetryOn::ConnectFailure | RetryOn::RefusedStream => false,
    }
}

/// How long to wait before the retry number `retry` (from 1): full jitter over `base * (2^retry - 1)`, never more than the
/// longest interval (Envoy, `JitteredExponentialBackOffStrategy`).
pub fn back_off(policy: &RetryPolicy, retry: u32, random: u64) -> Duration {
    let base_us = u64::try_from(policy.base_interval.as_micros()).unwrap_or(u64::MAX);
    let max_us = u64::try_from(policy.max_interval.as_micros()).unwrap_or(u64::MAX).max(1);
    let factor = 1_u64.checked_shl(retry).map_or(u64::MAX, |power| power - 1);
    let ceiling_us = base_us.saturating_mul(factor).min(max_us).max(1);
    Duration::from_micros(random % ceiling_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(retry_on: &[RetryOn]) -> RetryPolicy {
        RetryPolicy {
            retry_on: retry_on.to_vec(),
            num_retries: 2,
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            ..RetryPolicy::default()
        }
    }

    fn facts(method: &Method) -> RequestFacts<'_> {
        RequestFacts { method, replayable: true, untried: 1 }
    }

    #[test]
    fn a_connection_that_could_not_be_opened_is_no_reason_to_give_up_on_the_others() {
        let failed = Failure::from(FailureKind::ConnectFailed);
        for (untried, connects, expected) in [
            (1, 1, Verdict::Free),
            (1, MAX_CONNECT_ATTEMPTS - 1, Verdict::Free),
            (1, MAX_CONNECT_ATTEMPTS, Verdict::GiveUp),
            (0, 1, Verdict::GiveUp),
        ] {
            let request = RequestFacts { untried, ..facts(&Method::POST) };
            let after = after_failure(None, request, failed, Tried { connects, ..Tried::default() });
            assert_eq!(after, expected, "{untried} others after {connects}");
        }
    }

    #[test]
    fn the_keep_alive_race_is_repeated_once_where_that_is_safe() {
        let stale = Failure { kind: FailureKind::Terminated, stale: true };
        let fresh = Failure { kind: FailureKind::Terminated, stale: false };
        let unsent = Failure::from(FailureKind::NotSent);
        let once = Tried { replaced: 1, ..Tried::default() };
        let first = Tried::default();
        for (method, failure, tried, expected) in [
            (&Method::GET, stale, first, Verdict::Free),
            (&Method::GET, stale, once, Verdict::GiveUp),
            (&Method::GET, fresh, first, Verdict::GiveUp),
            (&Method::POST, stale, first, Verdict::GiveUp),
            (&Method::POST, unsent, first, Verdict::Free),
        ] {
            assert_eq!(after_failure(None, facts(method), failure, tried), expected, "{method} {failure:?}");
        }
        let read = RequestFacts { replayable: false, ..facts(&Method::PUT) };
        assert_eq!(after_failure(None, read, stale, first), Verdict::GiveUp);
    }

    #[test]
    fn a_policy_covers_what_it_names_and_ends() {
        let reset = Failure::from(FailureKind::RemoteReset);
        let overflow = Failure::from(FailureKind::Overflow);
        let five = policy(&[RetryOn::FiveXx]);
        let get = facts(&Method::GET);
        assert_eq!(after_failure(Some(&five), get, reset, Tried::default()), Verdict::Retry);
        assert_eq!(after_failure(Some(&five), get, overflow, Tried::default()), Verdict::GiveUp);
        let used = Tried { retries: 2, ..Tried::default() };
        assert_eq!(after_failure(Some(&five), get, reset, used), Verdict::Exhausted);
        let headers = HeaderMap::new();
        let gateway = policy(&[RetryOn::GatewayError]);
        for (status, expected) in [(500, Verdict::GiveUp), (503, Verdict::Retry), (200, Verdict::GiveUp)] {
            let status = StatusCode::from_u16(status).expect("status");
            assert_eq!(after_response(&gateway, true, status, &headers, Tried::default()), expected);
        }
    }

    #[test]
    fn the_back_off_grows_up_to_its_limit() {
        let policy = policy(&[]);
        for (retry, ceiling_ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (63, 250), (64, 250)] {
            let longest = (0..1000).map(|random| back_off(&policy, retry, random * 7919)).max().expect("some");
            assert!(longest < Duration::from_millis(ceiling_ms), "{retry}");
            assert!(longest > Duration::from_millis(ceiling_ms / 2), "{retry}");
        }
    }
}
