"""How papermill runs a lesson's cells here: as nbclient does, but no reply of the kernel goes unnoticed.

nbclient sends the state of an Output widget through a second handle on the socket on which it waits for the kernel's
reply. zmq announces a message once; if that falls into such a send, the wait never ends. It has stopped the test suite
twice, and 5 of 60 cells that print into an Output widget.
"""

from typing import Any

import zmq
from nbclient.output_widget import OutputWidget
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager
from papermill.log import logger


class WakingOutput(OutputWidget):
    """An Output widget's other end that looks for a reply after each of its messages."""

    def _publish_msg(self, *args: Any, **keywords: Any) -> None:
        super()._publish_msg(*args, **keywords)
        # Asking an asyncio socket for its events wakes whoever waits for them.
        self.kernel_client.shell_channel.socket.get(zmq.EVENTS)


class LessonEngine(Engine):
    """papermill's own engine with `WakingOutput` in its client, and fewer options."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        execution_timeout: int | None = None,
        extra_arguments: list[str] | None = None,
        **unused: Any,
    ) -> None:
        """Run the cells; papermill calls this."""
        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            timeout=execution_timeout,
            extra_arguments=extra_arguments or [],
            log=logger,
        )
        client.widget_registry["@jupyter-widgets/output"]["OutputModel"] = WakingOutput
        client.execute()
