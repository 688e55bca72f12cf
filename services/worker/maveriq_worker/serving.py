"""Answers the requests of one replica: takes them from the deployment's queues, drives the engine, acks."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from uuid import UUID

import structlog

from maveriq.bus import Bus, Mailbox, RequestDelivery
from maveriq.contracts import Chunk, FinishReason, Lane, Message, Priority, RequestCancelled
from maveriq_worker.answering import ENGINE_ERROR, LATE, Answer, Ending, generation
from maveriq_worker.engine import Engine, EngineFailed, RequestRefused
from maveriq_worker.lanes import Lanes
from maveriq_worker.outbox import Outbox, Sent
from maveriq_worker.request_span import record
from maveriq_worker.sizes import Sizes
from maveriq_worker.tally import Tally

MAX_CANCELLED = 10_000  # ids remembered of requests that were cancelled before they got here
LAST_CHUNKS_S = 5.0  # how long last chunks may take to be confirmed when the replica stops

log = structlog.get_logger()


class Serving:
    """A request is in `_answers` from its arrival until it is acked or back in the queue."""

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        deployment_id: UUID,
        slots: int,
        now: Callable[[], float] = time.time,
        *,
        lanes: Sequence[Lane] = (),
        model: str = "",
    ) -> None:
        """
        Args:
            slots: requests that the engine decodes together.
            now: seconds since the epoch.
            lanes: of a deployment whose requests are routed by size, those that it takes.
            model: its name, for who reads spans.
        """
        self._bus = bus
        self._engine = engine
        self._deployment_id = deployment_id
        self._slots = slots
        self._now = now
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(bus, self._client_gone)
        self._answers: dict[UUID, Answer] = {}
        self._waiting: dict[Priority, deque[Answer]] = {priority: deque() for priority in Priority}
        self.num_generating = 0
        """Requests that the engine is at."""
        self._cancelled: OrderedDict[UUID, None] = OrderedDict()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mailbox: Mailbox | None = None
        self._lanes = Lanes(bus, deployment_id, self._take, slots, lanes, self._has_room)
        self.sizes = Sizes()
        """Of what was answered in full."""
        self.tally = Tally()
        self.failed: asyncio.Future[str] = self._loop.create_future()
        """Why the engine can serve no more. Who waits for it calls `give_back`."""

    async def open(self) -> None:
        """Begin to take requests, and to hear of cancelled ones."""
        self._mailbox = await self._bus.mailbox(self._hear, name="worker")
        await self._mailbox.bind(f"{RequestCancelled.topic}.{self._deployment_id}")
        await self._lanes.open()

    @property
    def is_busy(self) -> bool:
        """The engine is at somebody's answer."""
        return self.num_generating > 0

    @property
    def num_waiting(self) -> int:
        """Requests taken that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    async def drain(self, quiet_s: float, limit_s: float) -> None:
        """Answer what is queued until nothing came for `quiet_s`, or for `limit_s` at most; then what is in hand."""
        end = self._loop.time() + limit_s
        while (left_s := end - self._loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left_s if self._answers else min(quiet_s, left_s))
            except TimeoutError:
                break
        await self._lanes.close()
        while self._answers:
            self._changed.clear()
            await self._changed.wait()

    async def give_back(self) -> None:
        """Take no more, and put what is in hand back into the queue, unanswered. Again is harmless."""
        await self._lanes.close()
        lasts = [a.task for a in self._answers.values() if a.task and not a.task.done() and not a.generating]
        if lasts:
            await asyncio.wait(lasts, timeout=LAST_CHUNKS_S)
        for queue in self._waiting.values():
            queue.clear()
        in_hand = list(self._answers.values())
        for answer in in_hand:
            answer.ending = Ending.GIVEN_BACK
            if answer.task:
                answer.task.cancel()
        if running := [answer.task for answer in in_hand if answer.task]:
            await asyncio.wait(running)
        for answer in in_hand:
            if self._answers.get(answer.request.request_id) is answer:
                self._forget(answer)
                await answer.delivery.requeue()
        if self._mailbox is not None:
            mailbox, self._mailbox = self._mailbox, None
            await mailbox.close()

    def _has_room(self) -> bool:
        """Whether a request that came now would begin now."""
        return self.num_generating + self.num_waiting < self._slots and not self.failed.done()

    def _take(self, delivery: RequestDelivery) -> None:
        """A request arrived."""
        self._changed.set()
        request_id = delivery.request.request_id
        if delivery.reply_to is None:
            log.warning("request without reply_to dropped", request_id=str(request_id), remedy="set reply_to")
            self._spawn(delivery.ack())
            return
        earlier = self._answers.get(request_id)
        if earlier is not None:
            # The connection broke and the broker handed the request out again: the earlier delivery is void.
            self._forget(earlier)
            self._end(earlier, Ending.GIVEN_BACK)
        answer = Answer(delivery, self._outbox.open_lane(delivery.reply_to), self._loop.time())
        self._answers[request_id] = answer
        self._waiting[delivery.priority].append(answer)
        left_s = delivery.deadline - self._now()
        if left_s <= 0:
            self._end(answer, Ending.LATE)
        elif request_id in self._cancelled:
            self._end(answer, Ending.CANCELLED)
        else:
            answer.timer = self._loop.call_later(left_s, self._end, answer, Ending.LATE)
            self._fill_slots()
            self._lanes.note()

    def _fill_slots(self) -> None:
        """High before normal before low, each in order of arrival."""
        for queue in self._waiting.values():
            while queue and self.num_generating < self._slots and not self.failed.done():
                answer = queue.popleft()
                answer.generating = True
                self.num_generating += 1
                answer.task = self._spawn(self._answer(answer), answer)

    async def _answer(self, answer: Answer) -> None:
        last: Chunk | None
        try:
            last = await self._generate(answer)
            if last.usage is not None:
                self.sizes.add(last.usage.prompt_tokens, last.usage.completion_tokens)
        except RequestRefused as refused:
            last = answer.end(self._loop.time(), FinishReason.ERROR, error=refused.error)
        except asyncio.CancelledError:
            if answer.ending is None or answer.ending is Ending.GIVEN_BACK:
                raise
            if answer.task:
                answer.task.uncancel()
            last = self._last_words(answer)
        except EngineFailed as failed:
            if not self.failed.done():
                self.failed.set_result(str(failed))
            return  # in hand until given back
        self._free_slot(answer)
        await self._conclude(answer, last)

    async def _generate(self, answer: Answer) -> Chunk:
        """Send every step but the last, which is returned. The hot path: per token its chunk, and nothing else."""
        lane = answer.lane
        answer.began_at = self._loop.time()
        steps = self._engine.generate(generation(answer.request))
        try:
            async for produced in steps:
                if answer.first_at is None:
                    answer.first_at = self._loop.time()
                    answer.prompt_tokens = produced.prompt_tokens
                if produced.finish_reason is not None:
                    error = ENGINE_ERROR if produced.finish_reason is FinishReason.ERROR else None
                    return answer.end(self._loop.time(), produced.finish_reason, produced, error)
                lane.put(answer.piece(produced))
        finally:
            if isinstance(steps, AsyncGenerator):
                await steps.aclose()
        raise EngineFailed("the engine ended an answer without a finish reason")

    def _last_words(self, answer: Answer) -> Chunk | None:
        """The last chunk of a request that ends early; None where nobody would read it."""
        if answer.ending is Ending.CANCELLED:
            return answer.end(self._loop.time(), FinishReason.CANCELLED)
        if answer.ending is Ending.LATE:
            return answer.end(self._loop.time(), FinishReason.ERROR, error=LATE)
        return None

    async def _conclude(self, answer: Answer, last: Chunk | None) -> None:
        """Send the last chunk, and ack the request once the client has it."""
        sent = await answer.lane.put_last(last.model_dump_json(exclude_none=True)) if last else Sent.GONE
        if sent is Sent.UNSURE:
            await answer.delivery.requeue()
        else:
            self.tally.add(last)
            await answer.delivery.ack()
        self._forget(answer)

    def _end(self, answer: Answer, ending: Ending) -> None:
        """End a request early, unless its last chunk is already on its way."""
        waiting = self._waiting[answer.delivery.priority]
        if answer.generating and answer.task and answer.ending is None:
            answer.ending = ending
            answer.task.cancel()
        elif answer in waiting:
            waiting.remove(answer)
            answer.ending = ending
            if ending is not Ending.GIVEN_BACK:
                answer.task = self._spawn(self._conclude(answer, self._last_words(answer)))

    def _hear(self, message: Message) -> None:
        if not isinstance(message, RequestCancelled):
            return
        answer = self._answers.get(message.request_id)
        if answer is not None:
            self._end(answer, Ending.CANCELLED)
            return
        self._cancelled[message.request_id] = None  # it may still wait in the queue
        if len(self._cancelled) > MAX_CANCELLED:
            self._cancelled.popitem(last=False)

    def _client_gone(self, address: str) -> None:
        theirs = [answer for answer in self._answers.values() if answer.lane.address == address]
        if theirs:
            theirs[0].context.copy().run(log.info, "client gone", address=address, num_requests=len(theirs))
        for answer in theirs:
            self._end(answer, Ending.CLIENT_GONE)

    def _free_slot(self, answer: Answer) -> None:
        if answer.generating:
            answer.generating = False
            self.num_generating -= 1
            self._fill_slots()
            self._lanes.note()

    def _forget(self, answer: Answer) -> None:
        """It is no longer in hand."""
        if self._answers.get(answer.request.request_id) is not answer:
            return
        del self._answers[answer.request.request_id]
        self._outbox.close_lane(answer.lane)
        if answer.timer:
            answer.timer.cancel()
        record(self._bus.spans, self._model, answer, self._loop.time())
        self._changed.set()

    def _spawn(self, work: Coroutine[None, None, None], answer: Answer | None = None) -> asyncio.Task[None]:
        context = None if answer is None else answer.context
        task = self._loop.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, answer), context=context)
        return task

    def _ended(self, task: asyncio.Task[None], answer: Answer | None) -> None:
        """What a task left behind: its slot, and on an error that nobody expected its request, which is tried again."""
        self._tasks.discard(task)
        if answer is not None:
            self._free_slot(answer)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("answering failed", exc_info=error)
        if answer is not None and self._answers.get(answer.request.request_id) is answer:
            self._forget(answer)
            self._spawn(answer.delivery.requeue())
