//! Waiting for several nodes at once without hanging on one that is silent.

use std::time::Duration;

use common::wire::NodeId;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::Stripe;
use crate::pool::Outcome;

/// Between two looks at whether what came is enough by now: a silent node may be known to be down meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What those asked answer, until all did, `deadline`, or what came is enough after having waited for so long. Those not
/// waited for are dropped.
pub(super) async fn answers<T>(
    asked: impl IntoIterator<Item = impl Future<Output = T>>,
    deadline: Instant,
    is_enough: impl Fn(&[T], Duration) -> bool,
) -> Vec<T> {
    let began = Instant::now();
    let mut asked: FuturesUnordered<_> = asked.into_iter().collect();
    let mut answers = Vec::with_capacity(asked.len());
    let mut look = began + LOOK_AGAIN;
    loop {
        tokio::select! {
            biased;
            answer = asked.next() => match answer {
                Some(answer) => answers.push(answer),
                None => return answers,
            },
            () = sleep_until(look.min(deadline)) => look += LOOK_AGAIN,
        }
        let now = Instant::now();
        if now >= deadline || is_enough(&answers, now - began) {
            return answers;
        }
    }
}

impl Stripe {
    /// What nodes answer. Once that is enough, those that have not answered are waited for only as long as a flush may
    /// take, and not if they lag anyway; they are reported as slow. Each is asked by its place among the nodes.
    pub(super) async fn answers_of<T, F: Future<Output = T>>(
        &self,
        nodes: &[NodeId],
        ask: impl Fn(usize, NodeId) -> F,
        deadline: Instant,
        is_enough: impl Fn(&[(NodeId, T)]) -> bool,
    ) -> Vec<(NodeId, T)> {
        let asked = nodes.iter().enumerate().map(|(place, &node)| {
            let answer = ask(place, node);
            async move { (node, answer.await) }
        });
        let silent = |said: &[(NodeId, T)]| -> Vec<NodeId> {
            nodes.iter().copied().filter(|node| said.iter().all(|(other, _)| other != node)).collect()
        };
        let may_go_on = |said: &[(NodeId, T)], waited| {
            let is_over = waited >= self.options.flush_patience;
            (is_over || silent(said).into_iter().all(|node| self.is_lagging(node))) && is_enough(said)
        };
        let said = answers(asked, deadline, may_go_on).await;
        silent(&said).into_iter().for_each(|node| self.pool.report(node, Outcome::Slow));
        said
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    /// Answers its number after so many seconds.
    async fn after(seconds: u64) -> u64 {
        match seconds {
            u64::MAX => pending().await,
            _ => sleep(Duration::from_secs(seconds)).await,
        }
        seconds
    }

    /// With a limit of thirty seconds; and how many that took.
    async fn ask(seconds: &[u64], is_enough: impl Fn(&[u64], u64) -> bool) -> (Vec<u64>, u64) {
        let began = Instant::now();
        let asked = seconds.iter().map(|&seconds| after(seconds));
        let deadline = began + Duration::from_secs(30);
        let answers = answers(asked, deadline, |answers, waited| is_enough(answers, waited.as_secs())).await;
        (answers, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_waited_for_while_there_is_patience() {
        assert_eq!(ask(&[1, 0, 1], |_, waited| waited >= 2).await, (vec![0, 1, 1], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_one_costs_the_patience_once_the_others_are_enough() {
        let two = |answers: &[u64], waited| answers.len() == 2 && waited >= 2;
        assert_eq!(ask(&[0, u64::MAX, 1], two).await, (vec![0, 1], 2));
        assert_eq!(ask(&[0, 5, u64::MAX], two).await, (vec![0, 5], 5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_enough_at_once_is_not_waited_for() {
        assert_eq!(ask(&[0, u64::MAX], |answers, _| answers.len() == 1).await, (vec![0], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_enough_ends_at_the_deadline() {
        assert_eq!(ask(&[0, u64::MAX], |_, _| false).await, (vec![0], 30));
    }
}
