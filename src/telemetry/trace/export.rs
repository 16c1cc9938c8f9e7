//! Exports spans in batches, from a bounded queue in a separate task. A receiver that hangs or refuses costs
//! spans, never requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TryRecvError},
    },
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Batches;

/// Counts of spans since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that the receiver accepted.
    pub exported: u64,
    /// Spans that were lost: the queue was full, or the export failed.
    pub lost: u64,
    /// Batches whose export failed.
    pub failures: u64,
}

static EXPORTED: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);
static FAILURES: AtomicU64 = AtomicU64::new(0);

/// Returns the counts of spans.
#[must_use]
pub fn counts() -> Counts {
    Counts {
        exported: EXPORTED.load(Ordering::Relaxed),
        lost: LOST.load(Ordering::Relaxed),
        failures: FAILURES.load(Ordering::Relaxed),
    }
}

fn lose(spans: usize) {
    LOST.fetch_add(spans as u64, Ordering::Relaxed);
}

/// The span processor that queues ended spans.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    /// Notified when a batch is complete. A notification for every span would wake the task too often.
    enough: Arc<Notify>,
    most: usize,
}

/// The task that exports spans.
#[derive(Debug)]
pub(super) struct Exporting {
    task: JoinHandle<()>,
    closing: CancellationToken,
}

/// The receiving end of the queue, before the export task is started.
#[derive(Debug)]
pub(super) struct Unstarted {
    batches: Batches,
    queue: mpsc::Receiver<SpanData>,
    enough: Arc<Notify>,
}

impl Queue {
    pub(super) fn new(batches: Batches) -> (Self, Unstarted) {
        let (spans, queue) = mpsc::channel(batches.queue);
        let enough = Arc::new(Notify::new());
        let unstarted = Unstarted {
            batches,
            queue,
            enough: Arc::clone(&enough),
        };
        let most = batches.most;
        let queue = Self {
            spans,
            enough,
            most,
        };
        (queue, unstarted)
    }
}

impl Unstarted {
    /// Starts a task on this runtime that exports the queued spans.
    pub(super) fn start(self, exporter: impl SpanExporter + 'static) -> Exporting {
        let closing = CancellationToken::new();
        let worker = Worker {
            exporter,
            batches: self.batches,
            queue: self.queue,
            enough: self.enough,
            failing: false,
        };
        let task = tokio::spawn(worker.run(closing.clone()));
        Exporting { task, closing }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            return lose(1);
        }
        let waiting = self.spans.max_capacity() - self.spans.capacity();
        if waiting >= self.most {
            self.enough.notify_one();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        // The export task flushes when it ends. Nothing else requests a flush.
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Exporting {
    /// Exports the queued spans within this limit. The remaining ones are lost.
    pub(super) async fn finish(mut self, limit: Duration) {
        self.closing.cancel();
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!(
                "spans that have not been sent are lost: their receiver does not answer"
            );
        }
    }
}

struct Worker<E> {
    exporter: E,
    batches: Batches,
    queue: mpsc::Receiver<SpanData>,
    enough: Arc<Notify>,
    /// Whether the last export failed, so that only the first failure is logged.
    failing: bool,
}

impl<E: SpanExporter> Worker<E> {
    async fn run(mut self, closing: CancellationToken) {
        let mut at = Instant::now() + self.batches.delay;
        loop {
            tokio::select! {
                () = self.enough.notified() => {}
                () = sleep_until(at) => {}
                () = closing.cancelled() => {}
            }
            at = Instant::now() + self.batches.delay;
            // Read before the queue is drained: spans that arrive after the close may be lost.
            let last = closing.is_cancelled();
            while let Some(batch) = self.batch() {
                let whole = batch.len() == self.batches.most;
                self.send(batch).await;
                if !whole && !last && !closing.is_cancelled() {
                    break;
                }
            }
            if last {
                return;
            }
        }
    }

    /// Takes the queued spans, up to the size of a batch.
    fn batch(&mut self) -> Option<Vec<SpanData>> {
        let mut batch = Vec::new();
        while batch.len() < self.batches.most {
            match self.queue.try_recv() {
                Ok(span) => batch.push(span),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = Sending(batch.len());
        let sent = timeout(self.batches.timeout, self.exporter.export(batch)).await;
        let error = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer in time".to_owned()),
        };
        let Some(error) = error else {
            EXPORTED.fetch_add(spans.taken() as u64, Ordering::Relaxed);
            if std::mem::take(&mut self.failing) {
                tracing::info!("spans are sent again");
            }
            return;
        };
        drop(spans);
        FAILURES.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(error, "spans cannot be sent, and are lost until they can");
        }
    }
}

impl<E> Drop for Worker<E> {
    fn drop(&mut self) {
        self.queue.close();
        lose(self.queue.len());
    }
}

/// A number of spans that count as lost when this is dropped, unless the receiver took them.
struct Sending(usize);

impl Sending {
    fn taken(mut self) -> usize {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        lose(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, time::SystemTime};

    use opentelemetry::{
        InstrumentationScope,
        trace::{SpanContext, SpanId, SpanKind, Status},
    };
    use opentelemetry_sdk::{
        error::OTelSdkError,
        trace::{SpanEvents, SpanLinks},
    };
    use parking_lot::{Mutex, MutexGuard};
    use tokio::{
        sync::Semaphore,
        time::{advance, sleep},
    };

    use super::*;

    const BATCHES: Batches = Batches {
        delay: Duration::from_secs(5),
        timeout: Duration::from_secs(30),
        queue: 8,
        most: 4,
    };

    /// Records the sizes of batches. Each export needs a permit, and fails while `fails` is set.
    #[derive(Debug, Clone)]
    struct Receiver {
        sizes: Arc<Mutex<Vec<usize>>>,
        permits: Arc<Semaphore>,
        fails: bool,
    }

    impl Receiver {
        fn new(permits: usize) -> Self {
            Self {
                sizes: Arc::default(),
                permits: Arc::new(Semaphore::new(permits)),
                fails: false,
            }
        }

        fn sizes(&self) -> Vec<usize> {
            lock(&self.sizes).clone()
        }
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock()
    }

    impl SpanExporter for Receiver {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            lock(&self.sizes).push(batch.len());
            match self.permits.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(OTelSdkError::AlreadyShutdown),
            }
            match self.fails {
                true => Err(OTelSdkError::InternalFailure("refused".to_owned())),
                false => Ok(()),
            }
        }
    }

    fn span() -> SpanData {
        SpanData {
            span_context: SpanContext::empty_context(),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Server,
            name: Cow::Borrowed("s"),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    fn put(queue: &Queue, spans: usize) {
        for _ in 0..spans {
            queue.on_end(span());
        }
    }

    /// Yields until the export task is idle.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// The counters are global to the process: serializes the tests.
    static COUNTED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    fn since(before: Counts) -> (u64, u64, u64) {
        let now = counts();
        (
            now.exported - before.exported,
            now.lost - before.lost,
            now.failures - before.failures,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn spans_wait_for_a_batch_or_for_the_delay() {
        let _alone = COUNTED.lock().await;
        let receiver = Receiver::new(100);
        let (queue, unstarted) = Queue::new(BATCHES);
        let _exporting = unstarted.start(receiver.clone());
        put(&queue, 3);
        settle().await;
        assert!(receiver.sizes().is_empty());
        advance(BATCHES.delay).await;
        settle().await;
        assert_eq!(receiver.sizes(), [3]);
        put(&queue, 4);
        settle().await;
        assert_eq!(receiver.sizes(), [3, 4], "without the delay");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_hangs_costs_what_does_not_fit_into_the_queue() {
        let _alone = COUNTED.lock().await;
        let before = counts();
        let receiver = Receiver::new(0);
        let (queue, unstarted) = Queue::new(BATCHES);
        let exporting = unstarted.start(receiver.clone());
        put(&queue, 4);
        settle().await;
        put(&queue, 8 + 5);
        assert_eq!(since(before), (0, 5, 0), "4 are being sent, 8 wait");
        sleep(BATCHES.timeout).await;
        settle().await;
        assert_eq!(since(before), (0, 9, 1));
        let closed = Instant::now();
        exporting.finish(Duration::from_secs(3)).await;
        assert_eq!(closed.elapsed(), Duration::from_secs(3));
        settle().await;
        assert_eq!(since(before), (0, 17, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted_and_the_end_sends_what_waits() {
        let _alone = COUNTED.lock().await;
        let before = counts();
        let mut receiver = Receiver::new(100);
        receiver.fails = true;
        let (queue, unstarted) = Queue::new(BATCHES);
        let exporting = unstarted.start(receiver.clone());
        put(&queue, 6);
        exporting.finish(Duration::from_secs(3)).await;
        assert_eq!((receiver.sizes(), since(before)), (vec![4, 2], (0, 6, 2)));

        let before = counts();
        let receiver = Receiver::new(100);
        let (queue, unstarted) = Queue::new(BATCHES);
        let exporting = unstarted.start(receiver.clone());
        put(&queue, 7);
        exporting.finish(Duration::from_secs(3)).await;
        assert_eq!((receiver.sizes(), since(before)), (vec![4, 3], (7, 0, 0)));
        put(&queue, 1);
        assert_eq!(since(before), (7, 1, 0), "what ends later is lost");
    }
}
