//! `/cni/add` and `/cni/del`: the CNI plugin tells of a pod and waits until the agent has enrolled it.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::State;
use super::reply::{self, Reply};
use crate::workload::cni::{CniAdd, CniDel, check_netns};

/// Annotations may hold 256 KiB in all (Kubernetes' `TotalAnnotationSizeLimitB`); quoting in JSON at most makes six
/// bytes of one.
const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The plugin writes its request at once.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A pod is being made.
///
/// # Errors
/// What is wrong with the request.
pub async fn add<B: Body<Data = Bytes, Error: Display>>(state: &State, body: B) -> Result<Reply, String> {
    let pod: CniAdd = read(body).await?;
    check_netns(&pod.netns).map_err(|error| causes(&error))?;
    Ok(match state.control.cni_add(pod).await {
        Ok(answer) => reply::json(&json!(answer)),
        Err(why) => unable(&why),
    })
}

/// A pod is being taken away.
///
/// # Errors
/// What is wrong with the request.
pub async fn del<B: Body<Data = Bytes, Error: Display>>(state: &State, body: B) -> Result<Reply, String> {
    let pod: CniDel = read(body).await?;
    Ok(match state.control.cni_del(pod).await {
        Ok(()) => reply::text(StatusCode::OK, "OK\n"),
        Err(why) => unable(&why),
    })
}

fn unable(why: &str) -> Reply {
    reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

async fn read<T: DeserializeOwned, B: Body<Data = Bytes, Error: Display>>(body: B) -> Result<T, String> {
    // `Limited` boxes what the body fails with, which must live for ever for that: text does.
    let body = std::pin::pin!(body.map_err(|error| error.to_string()));
    let read = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let bytes = read
        .map_err(|_| format!("the request's body did not come within {BODY_TIMEOUT:?}"))?
        .map_err(|error| format!("reading the request's body: {error}"))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| format!("the request's body is not what /help says: {error}"))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn no_more_is_read_than_a_pod_can_have() {
        let body = |length: usize| Full::new(Bytes::from(json!({"container_id": "x".repeat(length)}).to_string()));
        let pod = read::<CniDel, _>(body(BODY_BYTES_MAX / 2)).await.expect("a large one");
        assert_eq!(pod.container_id.len(), BODY_BYTES_MAX / 2);
        let error = read::<CniDel, _>(body(BODY_BYTES_MAX)).await.expect_err("too large");
        assert!(error.contains("length limit exceeded"), "{error}");
    }
}
